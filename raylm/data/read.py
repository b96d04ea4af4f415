"""One part to raw documents; what cannot be read comes out with its reason."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from raylm.data.clean import NotText, decode
from raylm.data.parts import Part
from raylm.errors import DataError, HostError, nearest

_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Raw:
    """A document before cleaning, or (`reason`) why there is none.

    `line` counts from 1 within the part of a JSONL file; it is 0 for a file that is one
    document.
    """

    line: int
    num_bytes: int
    text: str | None = None
    repaired: bool = False
    reason: str = ""
    detail: str = ""
    suggestion: str = ""
    """For `no-field`: the field that was probably meant."""
    record: dict[str, Any] | None = None
    """In place of `text`: a JSON object that is a document as a whole."""


@dataclass(frozen=True, slots=True)
class End:
    """Comes last: how many lines started in the part."""

    num_lines: int


def read_part(part: Part, text_field: str | None) -> Iterator[Raw | End]:
    """Read the documents of a part, in order, then `End`.

    Without `text_field`, a document is a whole record.

    Raises:
        DataError: the file is a broken gzip file or may not be read.
        HostError: it is not there, though the driver saw it: the folder is not shared.
    """
    try:
        with _open(part) as file:
            if part.jsonl:
                yield from _records(file, part, text_field)
            else:
                yield _document(file.read())
                yield End(0)
    except _GZIP_ERRORS as error:
        raise DataError(
            f"{part.name}: not a whole gzip file: {error}",
            code="data-broken-gzip",
            hint="copy it again, or leave it out with data.exclude",
        ) from error
    except FileNotFoundError as error:
        raise HostError(
            f"{part.name}: {part.path} is not there on this node",
            code="data-not-shared",
            hint="the corpus must lie under the same path on every node of the cluster, and "
            "must not change while it is read",
        ) from error
    except PermissionError as error:
        raise DataError(
            f"{part.name}: {part.path} may not be read: {error.strerror}",
            code="data-forbidden",
            hint="change its permissions, or leave it out with data.exclude",
        ) from error


def _open(part: Part) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(part.path) if part.gzipped else open(part.path, "rb"))


def _document(data: bytes) -> Raw:
    try:
        decoded = decode(data)
    except NotText as error:
        return Raw(0, len(data), reason=error.reason, detail=str(error))
    return Raw(0, len(data), decoded.text, decoded.repaired)


def _records(file: IO[bytes], part: Part, text_field: str | None) -> Iterator[Raw | End]:
    """A line belongs to the part in which its first byte lies."""
    position = part.start
    if part.start:
        file.seek(part.start - 1)
        position += len(file.readline()) - 1
    number = 0
    for line in iter(file.readline, b""):
        if position >= part.end and not part.gzipped:
            break
        position += len(line)
        number += 1
        if line.strip() not in (b"", b"\xef\xbb\xbf"):
            yield _record(line, number, text_field)
    yield End(number)


def _record(line: bytes, number: int, text_field: str | None) -> Raw:
    def bad(reason: str, detail: str, suggestion: str = "") -> Raw:
        return Raw(number, len(line), None, False, reason, detail, suggestion)

    try:
        decoded = decode(line)
    except NotText as error:
        return bad(error.reason, str(error))
    try:
        record = json.loads(decoded.text.strip())
    except json.JSONDecodeError as error:
        return bad("not-json", f"{error.msg} in column {error.colno}")
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        return bad("not-json", _one_line(str(error)))
    if not isinstance(record, dict):
        return bad("not-an-object", f"a JSON object is expected, found {kind(record)}")
    if text_field is None:
        return Raw(number, len(line), repaired=decoded.repaired, record=record)
    if text_field not in record:
        return bad("no-field", no_field(record, text_field), suggest(record, text_field))
    text = record[text_field]
    if not isinstance(text, str):
        return bad("not-a-string", f"field {text_field!r} holds {kind(text)}, not text")
    size = len(text.encode("utf-8", "surrogatepass"))
    return Raw(number, size, text, decoded.repaired)


def no_field(record: dict[str, Any], field: str) -> str:
    """What is said of a record that lacks a field."""
    fields = ", ".join(sorted(record)) or "none"
    return _one_line(f"no field {field!r}; there are: {fields}")


def suggest(record: dict[str, Any], text_field: str) -> str:
    """The field of the nearest name, else the one that holds the longest text."""
    texts = {name: len(value) for name, value in record.items() if isinstance(value, str)}
    return nearest(text_field, texts) or max(texts, key=texts.__getitem__, default="")


def most_suggested(suggestions: Counter[str]) -> str | None:
    """The field to offer in an error, if records agree on any."""
    return min(suggestions, key=lambda name: (-suggestions[name], name)) if suggestions else None


def kind(value: object) -> str:
    """What a JSON value is, for people."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _one_line(text: str) -> str:
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= 160 else text[:157] + "..."
