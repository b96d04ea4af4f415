"""Chat templates: the same text as transformers, and no way out of the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raylm.errors import ModelError, RequestError
from raylm.model.chat import MAX_TEMPLATE_BYTES, ChatTemplate

LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start|>' + message['role'] + '<|end|>\n\n'+ message['content'] | trim %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
ALTERNATE = (
    "{{ bos_token }}{%- for m in messages %}\n"
    "    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{- raise_exception('roles must alternate') }}\n"
    "    {%- endif %}\n"
    "    {%- if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}\n"
    "    {%- else %}[INST] {{ m['content'] | tojson }} [/INST]\n    {%- endif %}\n"
    "    {%- if loop.index0 > 5 %}{% break %}{% endif %}\n"
    "{%- endfor %}"
)
MESSAGES = [
    {"role": "user", "content": " hi <b>'ü' "},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "日本 & more"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", [LLAMA, ALTERNATE])
def test_renders_as_transformers_does(source):
    hub = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = hub.render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    assert ChatTemplate(source, SPECIAL, max_chars=9999).render(MESSAGES) == expected[0]


def test_tools_are_rendered_as_transformers_does():
    hub = pytest.importorskip("transformers.utils.chat_template_utils")
    source = "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}" + LLAMA
    tools = [{"type": "function", "function": {"name": "f", "description": "für <b>"}}]
    expected, _ = hub.render_jinja_template(
        [MESSAGES], tools=tools, chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    template = ChatTemplate(source, SPECIAL, max_chars=9999)
    assert template.render(MESSAGES, tools=tools) == expected[0]
    assert template.render(MESSAGES) == ChatTemplate(LLAMA, SPECIAL, max_chars=9999).render(
        MESSAGES
    )


@pytest.mark.parametrize(
    ("source", "knows"),
    [
        ("{% if tools is defined and tools %}x{% endif %}", True),
        ("{% for t in tools or [] %}x{% endfor %}", True),
        ("{# tools #}tools {{ messages[0].tools }}", False),
    ],
)
def test_a_template_knows_tools_if_it_reads_them(source, knows):
    assert ChatTemplate(source, {}, max_chars=99).knows_tools is knows


def test_refusal_of_a_template_is_a_400():
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate(ALTERNATE, SPECIAL, max_chars=9999).render(MESSAGES[1:])
    assert caught.value.status == 400 and caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% set _ = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list }}",
        "{{ '%s' | format(cycler.__init__.__globals__) }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source):
    with pytest.raises(RequestError):
        assert ChatTemplate(source, {}, max_chars=1000).render(MESSAGES) == ""
        raise RequestError("it saw nothing", code="nothing")


def test_output_is_bounded():
    source = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, {}, max_chars=100_000).render(MESSAGES)
    assert caught.value.code == "context-length-exceeded"


def test_size_and_syntax_are_checked_when_read():
    with pytest.raises(ModelError):
        ChatTemplate("x" * (MAX_TEMPLATE_BYTES + 1), {}, max_chars=10)
    with pytest.raises(ModelError, match="cannot be read"):
        ChatTemplate("{% for %}", {}, max_chars=10)


@pytest.mark.parametrize(
    ("config", "jinja", "expected"),
    [
        ({}, None, None),
        ({"chat_template": "A"}, None, "A"),
        ({"chat_template": "A"}, "B", "B"),
        ({"chat_template": [{"name": "tool", "template": "T"}]}, None, None),
        ({"chat_template": [{"name": "default", "template": "D"}]}, None, "D"),
        ({"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>"}}, None, "<s>"),
    ],
)
def test_where_templates_are_found(tmp_path: Path, config, jinja, expected):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    template = ChatTemplate.from_folder(tmp_path, max_chars=100)
    assert (template and template.render(MESSAGES)) == expected
