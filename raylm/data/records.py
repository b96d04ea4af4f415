"""One JSONL record to a document: which fields it must have, and what of them is its content.

The content is what is hashed: it decides identity, duplicates and the split, and is what the
second pass encodes. Of a text it is the text; of a record the cleaned fields that are read, as
JSON without spaces and with sorted keys. Fields that are not read do not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raylm.config.data import DataConfig
from raylm.data.read import kind, no_field, suggest
from raylm.errors import nearest

ASSISTANT = "assistant"
Clean = Callable[[str], str]


class BadRecord(ValueError):
    """Raised for a record that is set aside: reason (a code), detail (for people), suggestion."""

    def __init__(self, reason: str, detail: str, suggestion: str = "") -> None:
        super().__init__(reason, detail, suggestion)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Document:
    """What the first pass takes of a document."""

    content: str
    """What is hashed, and encoded later."""
    text: str
    """All its text, fields and messages one after the other, each on a line of its own: what
    is counted, and what a tokenizer is trained on."""
    label: str | None = None
    """As JSON."""

    @classmethod
    def of_text(cls, text: str) -> Document:
        """A plain text."""
        return cls(text, text)

    @property
    def num_bytes(self) -> int:
        """UTF-8 of the text."""
        return len(self.text.encode())


def take(record: dict[str, Any], config: DataConfig, clean: Clean) -> Document:
    """The document that a record of `config.format` (not `text`) is.

    Raises:
        BadRecord: a field is missing, of a wrong type or empty, or nothing could be learned.
    """
    return _TAKERS[config.format](record, config, clean)


def _chat(record: dict[str, Any], config: DataConfig, clean: Clean) -> Document:
    field = config.field("messages")
    messages = _messages(_value(record, field, "messages", list), field, clean)
    if all(message["role"] != ASSISTANT for message in messages):
        raise BadRecord("no-answer", f"no message has the role {ASSISTANT!r}")
    return Document(_canonical({"messages": messages}), _spoken(messages))


def _pairs(record: dict[str, Any], config: DataConfig, clean: Clean) -> Document:
    found = {name: _text(record, config.field(name), name, clean) for name in ("source", "target")}
    return Document(_canonical(found), f"{found['source']}\n{found['target']}")


def _labels(record: dict[str, Any], config: DataConfig, clean: Clean) -> Document:
    text = _text(record, config.text_field, "text", clean)
    field = config.field("label")
    label = _value(record, field, "label", (str, int))
    if isinstance(label, str):
        label = clean(label)
        _not_empty(label, field)
    return Document(_canonical({"text": text, "label": label}), text, _canonical(label))


def _preferences(record: dict[str, Any], config: DataConfig, clean: Clean) -> Document:
    field = config.field("prompt")
    prompt = _value(record, field, "prompt", (str, list))
    if isinstance(prompt, str):
        prompt = clean(prompt)
        _not_empty(prompt, field)
        said = f"{prompt}\n"
    else:
        prompt = _messages(prompt, field, clean)
        said = _spoken(prompt)
    chosen, rejected = (
        _text(record, config.field(name), name, clean) for name in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise BadRecord("no-preference", "the chosen and the rejected answer are the same")
    content = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return Document(_canonical(content), f"{said}{chosen}\n{rejected}")


_TAKERS = {"chat": _chat, "pairs": _pairs, "labels": _labels, "preferences": _preferences}


def _messages(values: list[Any], field: str, clean: Clean) -> list[dict[str, str]]:
    """Role and content of each message, cleaned."""
    if not values:
        raise BadRecord("empty", f"field {field!r} has no message")
    messages = []
    for number, value in enumerate(values, 1):
        place = f"message {number} of {field!r}"
        if not isinstance(value, dict):
            raise BadRecord("not-a-message", f"{place} is {kind(value)}, not an object")
        for name in ("role", "content"):
            if not isinstance(value.get(name), str):
                found = kind(value[name]) if name in value else "nothing"
                raise BadRecord("not-a-message", f"{place} has {found} as {name!r}, not text")
        messages.append({"role": clean(value["role"]), "content": clean(value["content"])})
    return messages


def _spoken(messages: list[dict[str, str]]) -> str:
    """What ChatML leaves of messages without its special tokens, which no merge makes."""
    return "".join(f"{message['role']}\n{message['content']}\n" for message in messages)


def _text(record: dict[str, Any], field: str, name: str, clean: Clean) -> str:
    text = clean(_value(record, field, name, str))
    _not_empty(text, field)
    return text


def _value(record: dict[str, Any], field: str, name: str, types: type | tuple[type, ...]) -> Any:
    if field not in record:
        raise BadRecord(
            "no-field", no_field(record, field), _suggestion(record, field, name, types)
        )
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, types):
        wanted = {str: "text", list: "a list of messages", int: "a whole number"}
        names = " or ".join(wanted[t] for t in (types if isinstance(types, tuple) else (types,)))
        raise BadRecord("wrong-type", f"field {field!r} holds {kind(value)}, not {names}")
    return value


def _suggestion(
    record: dict[str, Any], field: str, name: str, types: type | tuple[type, ...]
) -> str:
    """The option and value that were probably meant, or nothing."""
    fitting = [key for key, value in record.items() if isinstance(value, types)]
    close = nearest(field, fitting)
    if close is None and types is list:
        close = min(fitting, default=None)
    if close is None and name == "text":
        close = suggest(record, field) or None
    option = "data.text_field" if name == "text" else f"data.fields.{name}"
    return f"{option} to {close!r}" if close else ""


def _not_empty(text: str, field: str) -> None:
    if not text.strip():
        raise BadRecord("empty", f"field {field!r} is empty")


def _canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
