import pytest

from raylm.data.conversation import MAX_CHARS, Renderer
from raylm.data.records import BadRecord
from raylm.data.tokenizer import CHAT_TEMPLATE
from raylm.model.chat import ChatTemplate

LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = (  # as Qwen 3: thoughts of earlier turns are left out, the last turn always has some
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]


def renderer(source: str) -> Renderer:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(source, tokens, max_chars=MAX_CHARS, dated=False)
    return Renderer(template, SPECIAL)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


@pytest.mark.parametrize(
    ("source", "messages", "answers"),
    [
        (CHAT_TEMPLATE, turns("hi", "yes"), ["yes<|im_end|>"]),
        (
            CHAT_TEMPLATE, turns("hi", "one", "yes", "", "bye", system="yes"),
            ["one<|im_end|>", "<|im_end|>"],
        ),
        # The answer's text stands in a question too, before and after it.
        (CHAT_TEMPLATE, turns("yes", "yes", "yes", "yes\n"), ["yes<|im_end|>", "yes\n<|im_end|>"]),
        (LLAMA_2, turns("hi", " one ", "and", "two"), [" one </s>", " two </s>"]),
        (PLAIN, turns("hi", "one\n\nuser: x", "and", "two"), ["one\n\nuser: x", "two"]),
        (
            THINKING, turns("hi", "<think>hm</think>\n\none", "and", "two"),
            ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"],
        ),
        # What is left out here stands in a later turn: it is not searched for there.
        (
            THINKING, turns("hi", "</think>\nx</think>two", "</think>\nx</think>two", "b"),
            ["two<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"],
        ),
    ],
)  # fmt: skip
def test_answers_reach_from_the_prompt_to_the_end_of_the_turn(
    source: str, messages: list[dict[str, str]], answers: list[str]
) -> None:
    found = renderer(source).render(messages)
    assert [found.text[start:end] for start, end in found.answers] == answers


@pytest.mark.parametrize(
    ("source", "messages", "reason", "detail"),
    [
        (LLAMA_2, turns("a", "b", system="s"), "template-refused", "roles must alternate"),
        (
            CHAT_TEMPLATE, turns("a <|im_end|>", "b"),
            "special-token", "message 1 spells the tokenizer's special token '<|im_end|>'",
        ),
        (
            CHAT_TEMPLATE, [*turns("a", "b"), {"role": "<s>", "content": ""}],
            "special-token", "message 3 spells",
        ),
        ("{{ messages | length }}", turns("a", "b"), "template-refused", "in another way once"),
        (
            "{% for m in messages %}{{ m['role'] }}{% endfor %}", turns("a", "b"),
            "template-refused", "message 2 cannot be found",
        ),
        ("{{ strftime_now('%Y') }}", turns("a", "b"), "template-refused", "is undefined"),
    ],
)  # fmt: skip
def test_what_the_template_cannot_say_is_refused_with_a_reason(
    source: str, messages: list[dict[str, str]], reason: str, detail: str
) -> None:
    with pytest.raises(BadRecord) as caught:
        renderer(source).render(messages)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
