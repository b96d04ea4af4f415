"""Tokens and targets of records against a slow reference that goes token by token."""

import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from raylm.config.data import DataConfig
from raylm.data.encode_records import RecordEncoder, Vocabulary
from raylm.data.fit import Encoded
from raylm.data.tokenizer import CHAT_TEMPLATE, load_tokenizer, train_tokenizer
from raylm.errors import DataError
from tests.data.conftest import write_text

EOS, START, END = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    roles = [f"{role}\n" * 9 for role in ("user", "assistant", "system")]
    return train_tokenizer([write_text(seed, 30) for seed in range(20)] + roles, 420)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.to_str(), EOS, CHAT_TEMPLATE)


def encode(
    vocabulary: Vocabulary, records: list[dict[str, Any]], format: str, **config: Any
) -> list[Encoded]:
    settings = DataConfig.model_validate({"format": format, "seq_len": 2048} | config)
    return RecordEncoder(vocabulary, settings).encode(records)


def conversations(count: int) -> list[dict[str, Any]]:
    draw = random.Random(7)
    found = []
    for _ in range(count):
        roles = ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 4)
        roles += ["user"] * draw.randint(0, 1)
        messages = [
            {"role": role, "content": write_text(draw.randrange(999), draw.randint(0, 4))[:-1]}
            for role in roles
        ]
        found.append({"messages": messages})
    return found


def test_chat_targets_are_the_answers_and_their_ends_token_by_token(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    plain = load_tokenizer(tokenizer.to_str())

    def ids(text: str) -> list[int]:
        return plain.encode(text, add_special_tokens=False).ids

    records = conversations(50)
    for record, found in zip(records, encode(vocabulary, records, "chat"), strict=True):
        # ChatML turn by turn: (token, is it what the model must say).
        expected: list[tuple[int, bool]] = []
        for message in record["messages"]:
            says = message["role"] == "assistant"
            expected += [(START, False), *((t, False) for t in ids(message["role"] + "\n"))]
            expected += [*((t, says) for t in ids(message["content"])), (END, says)]
            expected += [(t, False) for t in ids("\n")]
        assert found.tokens.tolist() == [token for token, _ in expected]
        is_target = np.zeros(len(expected), bool)
        for start, length in found.spans:
            assert not is_target[start + 1 : start + length + 1].any()
            is_target[start + 1 : start + length + 1] = True
        assert is_target.tolist() == [says for _, says in expected]
        assert found.exact and found.reason is None and found.first == len(expected)


def test_a_tokenizer_of_words_with_metaspace_gives_the_same_answers() -> None:
    texts = ["<user> hello there <assistant> good day to you all"] * 5
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>", "</s>", "<unk>"],
                                      unk_token="<unk>", show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    special = (("bos_token", "<s>"), ("eos_token", "</s>"))
    messages = [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "good day"},
    ]
    [found] = encode(Vocabulary(tokenizer.to_str(), 1, template, special), [{"messages": messages}],
                     "chat")  # fmt: skip
    [(start, length)] = found.spans
    said = found.tokens[start + 1 : start + 1 + length].tolist()
    assert "".join(map(tokenizer.id_to_token, said)) == "good▁day</s>"
    assert len(found.tokens) == start + 1 + length, "nothing follows the last answer"


def test_special_tokens_in_a_message_are_refused_and_in_other_records_are_text(
    vocabulary: Vocabulary,
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<|im_end|>"}]
    [found] = encode(vocabulary, [{"messages": messages}], "chat")
    assert (found.reason, found.tokens.size) == ("special-token", 0)
    [pair] = encode(vocabulary, [{"source": "<|im_end|>", "target": "<|endoftext|>"}], "pairs")
    assert (pair.source[:-1] > END).all() and (pair.tokens[:-1] > END).all()
    preference = {"prompt": "<|im_start|>", "chosen": "<|im_end|>", "rejected": "no"}
    [both] = encode(vocabulary, [preference], "preferences")
    assert np.flatnonzero(both.tokens <= END).tolist() == [both.first - 1, len(both.tokens) - 1]


def test_a_pair_is_target_and_source_each_ended(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    record = {"source": "Straße 12", "target": "the value"}
    [found] = encode(vocabulary, [record], "pairs")
    assert found.tokens[-1] == found.source[-1] == EOS
    assert tokenizer.decode(found.tokens[:-1].tolist()) == "the value"
    assert tokenizer.decode(found.source[:-1].tolist()) == "Straße 12"
    assert (found.spans, found.first, found.exact) == ((), len(found.tokens), True)
    [cut] = encode(vocabulary, [{"source": "alpha " * 40, "target": "beta " * 40}], "pairs",
                   seq_len=8, source_len=10, too_long="truncate")  # fmt: skip
    # The decoder must not learn to stop where it was cut; the encoder's side ends as always.
    assert (len(cut.tokens), len(cut.source)) == (8, 10)
    assert EOS not in cut.tokens.tolist() and cut.source[-1] == EOS


@pytest.mark.parametrize("enclosed", [False, True])
def test_a_labelled_text_has_the_special_tokens_of_the_post_processor(enclosed: bool) -> None:
    tokenizer = train_tokenizer([write_text(1, 50)], 300, enclosed=enclosed)
    vocabulary = Vocabulary(tokenizer.to_str(), EOS, None)
    records = [{"text": "alpha beta", "label": 1}, {"text": "alpha " * 50, "label": 0}]
    short, long = encode(vocabulary, records, "labels", seq_len=12, too_long="truncate")
    inner = tokenizer.encode("alpha beta", add_special_tokens=False).ids
    assert short.tokens.tolist() == [*([EOS] if enclosed else []), *inner, EOS]
    assert len(long.tokens) == 12 and long.tokens[-1] == EOS
    assert (long.tokens[0] == EOS) is np.bool_(enclosed)
    assert (long.tokens[1:-1] > END).all()
    assert short.exact and long.exact and long.truncated


def test_bert_s_post_processor_is_taken_as_it_is() -> None:
    vocab = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "good": 3, "bad": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    records = [{"text": "good bad", "label": "x"}, {"text": "good " * 20, "label": "x"}]
    found = encode(Vocabulary(tokenizer.to_str(), 1, None), records, "labels",
                   seq_len=8, too_long="truncate")  # fmt: skip
    assert [f.tokens.tolist() for f in found] == [[0, 3, 4, 1], [0, 3, 3, 3, 3, 3, 3, 1]]


@pytest.mark.parametrize("as_messages", [False, True])
def test_a_preference_is_two_segments_that_differ_in_the_answer(
    tokenizer: Tokenizer, vocabulary: Vocabulary, as_messages: bool
) -> None:
    question = "def value"
    prompt: Any = [{"role": "user", "content": question}] if as_messages else question + "\n"
    record = {"prompt": prompt, "chosen": "return 12", "rejected": "café naïve"}
    [found] = encode(vocabulary, [record], "preferences")
    sides = (found.tokens[: found.first], found.tokens[found.first :])
    said = []
    for place, side, answer in zip(
        (0, found.first), sides, ("return 12", "café naïve"), strict=True
    ):
        [(start, length)] = [s for s in found.spans if place <= s[0] < place + len(side)]
        tokens = found.tokens[start + 1 : start + 1 + length].tolist()
        assert tokens[-1] == (END if as_messages else EOS)
        assert tokenizer.decode(tokens[:-1]) == answer
        said.append(start - place)
    assert said[0] == said[1], "both sides have the same prompt"
    assert (sides[0][: said[0] + 1] == sides[1][: said[0] + 1]).all()
    assert found.exact


def test_messages_need_a_chat_template(tokenizer: Tokenizer) -> None:
    without = Vocabulary(tokenizer.to_str(), EOS, None)
    message = {"role": "user", "content": "hi"}
    record = {"prompt": [message], "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError) as caught:
        encode(without, [record], "preferences")
    assert caught.value.code == "data-no-chat-template"
    [found] = encode(without, [record | {"prompt": "hi"}], "preferences")
    assert found.reason is None


def test_records_come_back_in_their_order_whatever_they_are(vocabulary: Vocabulary) -> None:
    message = {"role": "user", "content": "<|im_end|>"}
    records = [
        {"prompt": "a ", "chosen": "b", "rejected": "c"},
        {"prompt": [message], "chosen": "b", "rejected": "c"},
        {"prompt": [message | {"content": "hi"}], "chosen": "x" * 3, "rejected": "c"},
        {"prompt": "d ", "chosen": "e", "rejected": "f"},
    ]
    found = encode(vocabulary, records, "preferences")
    assert [f.reason for f in found] == [None, "special-token", None, None]
    alone = [encode(vocabulary, [record], "preferences")[0] for record in records]
    assert [f.tokens.tolist() for f in found] == [f.tokens.tolist() for f in alone]
    assert json.dumps([f.spans for f in found]) == json.dumps([f.spans for f in alone])
