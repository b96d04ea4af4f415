"""Receiving a multipart form with one file: to the disk as it comes, bounded, never in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from raylm.errors import RequestError

MAX_FIELD_BYTES = 1024
MAX_FIELDS = 16
OVERHEAD_BYTES = 65_536
"""What boundaries, headers and fields may come to beside the file."""
WRITE_BYTES = 2**20


@dataclass(slots=True)
class Form:
    """The form as far as it has come. Its methods are the parser's callbacks."""

    max_file_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    num_bytes: int = 0
    """Of the file."""
    pending: bytearray = field(default_factory=bytearray)
    """The file's bytes that are not on the disk yet."""
    is_whole: bool = False
    _header: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    _disposition: bytes = b""
    _name: str | None = None
    """Of the field that is being read; None while it is the file."""
    _value: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """By the names that the parser has for them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._name_part,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _grow(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _name_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            if name in self.fields or len(self.fields) == MAX_FIELDS:
                raise _malformed(f"has the field {name!r} twice, or more than {MAX_FIELDS} fields")
            self._name, self._value = name, bytearray()
            return
        if name != "file" or self.filename is not None:
            raise _malformed("must have one file, in the field 'file'")
        self._name = None
        self.filename = options[b"filename"].decode("utf-8", "replace")[:255] or "upload.jsonl"

    def _data(self, data: bytes) -> None:
        if self._name is not None:
            self._value += data
            if len(self._value) > MAX_FIELD_BYTES:
                raise _malformed(f"has more than {MAX_FIELD_BYTES} bytes in {self._name!r}")
            return
        self.num_bytes += len(data)
        if self.num_bytes > self.max_file_bytes:
            raise too_large(self.max_file_bytes)
        self.pending += data

    def _end(self) -> None:
        if self._name is not None:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.is_whole = True


async def receive(request: Request, descriptor: int, max_file_bytes: int) -> Form:
    """Write the form's file to an open file, synced; its other fields are in the result.

    Raises:
        RequestError: 400 or 413, the form is not usable.
        OSError: the disk is full.
        ClientDisconnect: the client left before it had sent everything.
    """
    form = Form(max_file_bytes)
    parser = MultipartParser(_boundary(request, max_file_bytes), form.callbacks())
    num_bytes = 0
    try:
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes > max_file_bytes + OVERHEAD_BYTES:
                raise too_large(max_file_bytes)
            parser.write(part)
            if len(form.pending) >= WRITE_BYTES:
                await asyncio.to_thread(_flush, form, descriptor)
    except FormParserError as error:
        raise _malformed(f"cannot be read: {error}") from None
    if not form.is_whole or form.filename is None:
        raise _malformed("must be whole, with one file in the field 'file'")
    await asyncio.to_thread(_flush, form, descriptor)
    await asyncio.to_thread(os.fsync, descriptor)
    return form


def _flush(form: Form, descriptor: int) -> None:
    with memoryview(form.pending) as left:
        while left:
            left = left[os.write(descriptor, left) :]
    form.pending = bytearray()


def _boundary(request: Request, max_file_bytes: int) -> bytes:
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError(
            "content-type must be multipart/form-data with a boundary",
            code="unsupported-content-type",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(
            "send the form uncompressed", code="unsupported-content-encoding", status=415
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > max_file_bytes + OVERHEAD_BYTES:
        raise too_large(max_file_bytes)
    return options[b"boundary"]


def too_large(limit_bytes: int) -> RequestError:
    """The file is larger than the configuration allows."""
    return RequestError(
        f"the file is larger than {limit_bytes} bytes", code="file-too-large", status=413
    )


def _malformed(what: str) -> RequestError:
    return RequestError(f"the form {what}", code="invalid-form")
