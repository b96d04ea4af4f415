"""TensorBoard's event files, written byte by byte: records of Event messages.

The libraries that write them load torch or boto3 with themselves (tensorboardX 2.6: seconds of
CPU and hundreds of megabytes at every start). The format has not changed since 2015: a record is
length, checksum, data, checksum (tensorflow/core/lib/io/record_writer.h); the data is protobuf
(tensorflow/core/util/event.proto, framework/summary.proto).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

_VERSION = b"brain.Event:2"
_SESSION_START = 1


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_CRC32C = _table()
_LARGEST = 3.4028234e38
"""Of a float32."""


class EventFile:
    """One event file, begun anew; what is flushed survives a kill."""

    def __init__(self, path: Path, *, wall_time: float, purge_step: int) -> None:
        """Readers forget what earlier files of the folder say of `purge_step` and later."""
        self._file = path.open("xb")
        self._write(event(wall_time, version=True))
        self._write(event(wall_time, step=purge_step, starts_session=True))
        self.flush()

    def add(self, values: Mapping[str, float], *, step: int, wall_time: float) -> None:
        """Write figures of a step."""
        self._write(event(wall_time, step=step, values=values))

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(record(data))


def record(data: bytes) -> bytes:
    """One record of the file."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def event(
    wall_time: float,
    *,
    step: int = 0,
    values: Mapping[str, float] | None = None,
    version: bool = False,
    starts_session: bool = False,
) -> bytes:
    """An Event message."""
    message = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step)
    if version:
        message += _field(3, _VERSION)
    if values:
        message += _field(5, b"".join(_field(1, _value(k, v)) for k, v in values.items()))
    if starts_session:
        message += _field(7, b"\x08" + _varint(_SESSION_START))
    return message


def _value(name: str, value: float) -> bytes:
    if math.isfinite(value) and abs(value) > _LARGEST:
        value = math.copysign(math.inf, value)
    return _field(1, name.encode()) + b"\x15" + struct.pack("<f", value)


def _field(number: int, content: bytes) -> bytes:
    """A field whose length goes before it: text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
