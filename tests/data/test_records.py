import json
from typing import Any

import pytest

from raylm.config.data import DataConfig
from raylm.data.hashing import text_hash
from raylm.data.records import BadRecord, Document, take

HI = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}


def document(format: str, record: dict[str, Any], **config: Any) -> Document:
    return take(record, DataConfig.model_validate({"format": format} | config), str.strip)


@pytest.mark.parametrize(
    ("format", "record", "content", "text", "label"),
    [
        (
            "chat", {"messages": [HI | {"name": "x"}, YES], "id": 7},
            '{"messages":[{"content":"hi","role":"user"},{"content":"yes","role":"assistant"}]}',
            "user\nhi\nassistant\nyes\n", None,
        ),
        (
            "pairs", {"target": " ß ", "source": "a"}, '{"source":"a","target":"ß"}', "a\nß", None,
        ),
        ("labels", {"label": 3, "text": "t"}, '{"label":3,"text":"t"}', "t", "3"),
        ("labels", {"label": "a ", "text": "t"}, '{"label":"a","text":"t"}', "t", '"a"'),
        (
            "preferences", {"prompt": "p", "chosen": "c", "rejected": "r"},
            '{"chosen":"c","prompt":"p","rejected":"r"}', "p\nc\nr", None,
        ),
        (
            "preferences", {"prompt": [HI], "chosen": "c", "rejected": "r"},
            '{"chosen":"c","prompt":[{"content":"hi","role":"user"}],"rejected":"r"}',
            "user\nhi\nc\nr", None,
        ),
    ],
)  # fmt: skip
def test_the_content_is_what_is_read_of_the_record_and_nothing_else(
    format: str, record: dict[str, Any], content: str, text: str, label: str | None
) -> None:
    found = document(format, record)
    assert (found.content, found.text, found.label) == (content, text, label)
    assert found.num_bytes == len(text.encode())
    turned = dict(reversed(record.items()))
    assert text_hash(document(format, turned).content.encode()) == text_hash(content.encode())


@pytest.mark.parametrize(
    ("format", "record", "reason", "detail"),
    [
        ("chat", {"conv": [HI]}, "no-field", "no field 'messages'; there are: conv"),
        ("chat", {"messages": "hi"}, "wrong-type", "field 'messages' holds a text, not a list of"),
        ("chat", {"messages": []}, "empty", "field 'messages' has no message"),
        ("chat", {"messages": [HI, 3]}, "not-a-message", "message 2 of 'messages' is a number"),
        (
            "chat", {"messages": [YES | {"content": None}]},
            "not-a-message", "message 1 of 'messages' has null as 'content', not text",
        ),
        (
            "chat", {"messages": [{"content": "x"}]},
            "not-a-message", "message 1 of 'messages' has nothing as 'role', not text",
        ),
        ("chat", {"messages": [HI]}, "no-answer", "no message has the role 'assistant'"),
        ("pairs", {"source": "a"}, "no-field", "no field 'target'; there are: source"),
        ("pairs", {"source": "a", "target": " "}, "empty", "field 'target' is empty"),
        ("labels", {"text": "a", "label": True}, "wrong-type", "'label' holds a truth value, not"),
        ("labels", {"text": "a", "label": 1.5}, "wrong-type", "a number, not text or a whole numb"),
        ("labels", {"text": "a", "label": ""}, "empty", "field 'label' is empty"),
        (
            "preferences", {"prompt": "p", "chosen": "a", "rejected": "a "},
            "no-preference", "the chosen and the rejected answer are the same",
        ),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_says_why(
    format: str, record: dict[str, Any], reason: str, detail: str
) -> None:
    with pytest.raises(BadRecord) as caught:
        document(format, record)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("format", "record", "suggestion"),
    [
        ("chat", {"message": [HI], "id": "x"}, "data.fields.messages to 'message'"),
        ("chat", {"turns": [HI], "id": "x"}, "data.fields.messages to 'turns'"),
        ("pairs", {"Target": "a", "source": "a"}, "data.fields.target to 'Target'"),
        ("labels", {"review": "a long text", "label": 1}, "data.text_field to 'review'"),
        ("labels", {"text": "a", "stars": 1}, ""),
    ],
)
def test_the_field_that_was_probably_meant_is_offered(
    format: str, record: dict[str, Any], suggestion: str
) -> None:
    with pytest.raises(BadRecord) as caught:
        document(format, record)
    assert caught.value.args[2] == suggestion


def test_fields_can_have_other_names() -> None:
    fields = {"messages": "turns"}
    assert document("chat", {"turns": [YES]}, fields=fields).text == "assistant\nyes\n"
    named = document(
        "labels", {"body": "b", "stars": 4}, text_field="body", fields={"label": "stars"}
    )
    assert json.loads(named.content) == {"text": "b", "label": 4}
