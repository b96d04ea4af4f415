"""A stream: rows of token ids on disk, memory-mapped, with the pieces that lie in each row.

    tokens-00000.bin ...   rows of `seq_len` token ids, little-endian uint16 or uint32,
                           `shard_samples` rows in each file but the last
    pieces.npy             PIECE [pieces]: which tokens of which document lie where
    piece_starts.npy       int64 [num_samples + 1]: row i has the pieces
                           piece_starts[i] : piece_starts[i + 1]

Pieces lie without gaps from the start of a row; what is left of the row is padding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

PIECES, PIECE_STARTS = "pieces.npy", "piece_starts.npy"
PIECE = np.dtype(
    [
        ("start", "<i4"),  # first token in the sample
        ("length", "<i4"),  # tokens
        ("document", "<i8"),  # row of documents.parquet
        ("token_offset", "<i8"),  # tokens of the document before this piece
        ("byte_offset", "<i8"),  # bytes of the document before this piece
    ]
)
I64 = npt.NDArray[np.int64]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"tokens-{number:05d}.bin"


class Stream:
    """Rows by number, all of them in memory maps."""

    def __init__(
        self, folder: Path, dtype: str, seq_len: int, shard_samples: int, num_samples: int
    ) -> None:
        self.seq_len = seq_len
        self._shard_samples = shard_samples
        num_shards = -(-num_samples // shard_samples)
        shards = [
            np.memmap(folder / shard_name(n), np.dtype(dtype), "r") for n in range(num_shards)
        ]
        self._shards = [shard.reshape(-1, seq_len) for shard in shards]
        self.pieces = np.load(folder / PIECES, mmap_mode="r")
        self._piece_starts = np.load(folder / PIECE_STARTS, mmap_mode="r")

    def tokens(self, rows: I64) -> I64:
        """Token ids as they are stored, [n, seq_len]."""
        out = np.empty((len(rows), self.seq_len), np.int64)
        for place, row in enumerate(rows):
            shard, number = divmod(int(row), self._shard_samples)
            out[place] = self._shards[shard][number]
        return out

    def pieces_of(self, rows: I64) -> tuple[I64, I64]:
        """Numbers of all pieces of rows, one after the other, and how many each has."""
        return ranges(self._piece_starts[rows], self._piece_starts[rows + 1])

    def layout(self, rows: I64) -> tuple[npt.NDArray[np.int32], I64]:
        """Segment (from 1; 0 is padding) and position of every token, [n, seq_len] each."""
        picks, counts = self.pieces_of(rows)
        pieces = self.pieces[picks]
        start = pieces["start"].astype(np.int64)
        row = np.repeat(np.arange(len(rows)), counts)
        # Pieces lie without gaps from the start of a sample: only its last token can tell
        # where padding begins.
        filled = np.add.reduceat(pieces["length"], np.cumsum(counts) - counts)
        segments = np.zeros((len(rows), self.seq_len), np.int32)
        positions = np.zeros((len(rows), self.seq_len), np.int64)
        inside = np.arange(self.seq_len) < filled[:, None]
        segments[inside] = np.repeat((numbered(counts) + 1).astype(np.int32), pieces["length"])
        flat = np.flatnonzero(inside)
        positions[inside] = flat - np.repeat(row * self.seq_len + start, pieces["length"])
        return segments, positions


def ranges(first: I64, end: I64) -> tuple[I64, I64]:
    """All numbers of the ranges [first, end), one range after the other, and their counts."""
    counts = end - first
    return np.repeat(first, counts) + numbered(counts), counts


def numbered(counts: I64) -> I64:
    """0, 1, ... within each of groups of so many members, one group after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
