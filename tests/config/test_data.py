from typing import Any

import pytest
from pydantic import ValidationError

from raylm.config.data import DataConfig, TokenizerConfig


def key(**values: Any) -> dict[str, Any]:
    return DataConfig.model_validate(values).key()


def test_the_key_of_text_is_that_from_before_there_were_records() -> None:
    assert sorted(key()) == [
        "dedup", "exclude", "fix_mojibake", "held_out", "max_bad", "min_bytes", "normalize",
        "pattern", "seq_len", "shard_samples", "text_field", "tokenizer",
    ]  # fmt: skip
    assert key()["tokenizer"] == {"vocab_size": 8192, "sample_bytes": 2**26}
    assert key(tokenizer={"mask_token": True})["tokenizer"]["mask_token"] is True


def test_the_key_of_records_has_what_decides_them() -> None:
    keys = [
        key(format="pairs"),
        key(format="chat"),
        key(format="pairs", too_long="truncate"),
        key(format="pairs", source_len=64),
        key(format="pairs", fields={"source": "de"}),
    ]
    assert all(one != other for n, one in enumerate(keys) for other in keys[:n])


def test_records_may_be_short() -> None:
    assert DataConfig().min_bytes == 16
    assert DataConfig(format="labels").min_bytes == 1
    assert DataConfig(format="labels", min_bytes=5).min_bytes == 5
    resolved = DataConfig(format="labels").model_dump()
    assert DataConfig.model_validate(resolved) == DataConfig(format="labels")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "chat", "source_len": 64}, "source_len: format=chat has no encoder's side"),
        ({"source_len": 64}, "source_len: format=text has no encoder's side"),
        ({"too_long": "truncate"}, "too_long: format=text cuts documents, none is too long"),
        ({"fields": {"label": "x"}}, "format=text has no field 'label': it has none to name"),
        (
            {"format": "pairs", "fields": {"sorce": "de"}},
            "format=pairs has no field 'sorce': it has source, target",
        ),
        ({"format": "labels", "fields": {"text": "x"}}, "the text's field is set with text_field"),
        ({"format": "pairs", "fields": {"source": "target"}}, "two of target, target are the same"),
        ({"format": "labels", "text_field": "label"}, "two of label, label are the same field"),
        ({"format": "chat", "text_field": "body"}, "text_field: format=chat has no such field"),
    ],
)
def test_options_that_the_format_does_not_read_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "t"}, "the one in path has its own"),
        ({"vocab_size": 259}, "vocab_size=259 is too small for mask_token"),
    ],
)
def test_a_mask_token_needs_a_tokenizer_to_train_with_room(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate({"mask_token": True} | values)


def test_fields_are_named_anew() -> None:
    config = DataConfig(format="pairs", fields={"source": "de"})
    assert [config.field(name) for name in ("source", "target")] == ["de", "target"]
