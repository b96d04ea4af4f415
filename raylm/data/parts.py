"""Parts: the units of reading. A large JSONL file is several, small files go in groups.

How the corpus is cut decides only how the work spreads, never what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raylm.data.sources import SourceFile

MAX_PART_BYTES = 32 * 2**20
"""A plain JSONL file is cut into ranges of this size."""
_UNZIPPED = 4
"""Text is assumed to be this much larger than its gzip file."""
PART_SCHEMA = pa.schema(
    [
        ("number", pa.int32()),
        ("path", pa.string()),
        ("name", pa.string()),
        ("jsonl", pa.bool_()),
        ("gzipped", pa.bool_()),
        ("start", pa.int64()),
        ("end", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """A file, or the lines of a JSONL file that start in the byte range [start, end)."""

    number: int
    path: str
    name: str
    jsonl: bool
    gzipped: bool
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """About how much text it holds."""
        return (self.end - self.start) * (_UNZIPPED if self.gzipped else 1)

    def to_row(self) -> dict[str, Any]:
        """The part as a row of a table."""
        return {name: getattr(self, name) for name in self.__slots__}


def cut(files: Sequence[SourceFile], max_bytes: int = MAX_PART_BYTES) -> list[Part]:
    """All parts of the corpus, in its order, numbered from 0."""
    parts: list[Part] = []
    for file in files:
        cuttable = file.jsonl and not file.gzipped
        ends = range(max_bytes, file.size_bytes, max_bytes) if cuttable else ()
        starts = [0, *ends]
        for start, end in zip(starts, [*ends, file.size_bytes], strict=True):
            parts.append(
                Part(len(parts), str(file.path), file.name, file.jsonl, file.gzipped, start, end)
            )
    return parts


def group(parts: Iterable[Part], target_bytes: int) -> list[list[Part]]:
    """Neighbouring parts together until a group holds `target_bytes`: one task each."""
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        if room <= 0:
            groups.append([])
            room = target_bytes
        groups[-1].append(part)
        # A file costs something to open, however small it is.
        room -= part.num_bytes + 1024
    return groups
