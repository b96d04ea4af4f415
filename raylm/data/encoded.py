"""What the second pass over records brings home: tokens to files, the rest to columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raylm.data.stream import I64
from raylm.data.targets import SPAN


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that is not packed; `place` is its number among the records of the pass."""

    place: int
    reason: str
    detail: str


class EncodedRecords:
    """Columns over the records of the pass, in order; those left out have no tokens."""

    def __init__(self, tokens: IO[bytes], source: IO[bytes], dtype: np.dtype[np.unsignedinteger]):
        self._tokens, self._source, self._dtype = tokens, source, dtype
        self._counts: list[I64] = []
        self._spans: list[npt.NDArray[np.int32]] = []
        self.left_out: list[LeftOut] = []
        self.num_done = 0
        self.num_truncated = 0
        self.exact = True

    def add(self, table: pa.Table) -> None:
        """Take a table of `encode_records`; they come in order."""
        counts = [
            self._write(table["tokens"], self._tokens),
            self._write(table["source"], self._source),
            table["first"].to_numpy().astype(np.int64),
            pc.list_value_length(table["spans"]).to_numpy() // 2,
        ]
        self._counts.append(np.stack(counts, axis=1))
        self._spans.append(_flat(table["spans"]).astype(np.int32))
        places = np.flatnonzero(pc.is_valid(table["reason"]).to_numpy())
        bad = table.select(["reason", "detail"]).take(places).to_pylist()
        self.left_out += [
            LeftOut(self.num_done + place, **row)
            for place, row in zip(places.tolist(), bad, strict=True)
        ]
        self.num_done += len(table)
        self.num_truncated += pc.sum(table["truncated"]).as_py() or 0
        self.exact &= pc.all(table["exact"]).as_py()

    def columns(self) -> dict[str, I64]:
        """num_tokens, num_source, first and num_spans of each record, and where in the files
        and among the spans those of each begin."""
        num_tokens, num_source, first, num_spans = np.concatenate(self._counts).T
        return {
            "num_tokens": num_tokens, "begin": np.cumsum(num_tokens) - num_tokens,
            "num_source": num_source, "source_begin": np.cumsum(num_source) - num_source,
            "num_spans": num_spans, "span_begin": np.cumsum(num_spans) - num_spans,
            "first": first,
        }  # fmt: skip

    def spans(self) -> npt.NDArray[np.void]:
        """SPAN of all records, one after the other."""
        return np.concatenate(self._spans).astype("<i4").view(SPAN)

    def _write(self, column: pa.ChunkedArray, file: IO[bytes]) -> I64:
        file.write(_flat(column).astype(self._dtype).tobytes())
        return np.asarray(pc.list_value_length(column).to_numpy(), np.int64)


def _flat(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
