"""The dataset artifact, and reading it: needs numpy alone, neither Ray nor torch.

    tokenizer/                 a Hugging Face tokenizer folder
    token_bytes.npy            int32 [vocab]: bytes of text that each token stands for
    index.json                 sequence length, vocabulary, dtype, and the figures of each split
    report.json                the funnel: files, documents and bytes into and out of each step
    set_aside.jsonl            what could not be read: source, reason, detail
    train/, held_out/          a split:
        tokens-00000.bin ...   rows of `seq_len` token ids, little-endian uint16 or uint32,
                               `shard_samples` rows in each file but the last
        pieces.npy             PIECE [pieces]: which tokens of which document lie where
        piece_starts.npy       int64 [num_samples + 1]: sample i has the pieces
                               piece_starts[i] : piece_starts[i + 1]
        documents.parquet      id, source, num_bytes, num_tokens; row = PIECE.document

Documents, each ended by the tokenizer's end-of-text token, follow each other in a shuffled
order and are cut every `seq_len` tokens; the rest of the last sample is padding. A piece is
what a sample holds of one document. Pieces never see each other: they are separate
segments, and positions start at 0 in each. Byte offsets count the UTF-8 of the cleaned
text; the document's tokens, decoded, are exactly that text if index.json says `exact_bytes`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raylm.errors import ArtifactError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
INDEX, TOKEN_BYTES, PIECES, PIECE_STARTS, DOCUMENTS = (
    "index.json", "token_bytes.npy", "pieces.npy", "piece_starts.npy", "documents.parquet",
)  # fmt: skip
PIECE = np.dtype(
    [
        ("start", "<i4"),  # first token in the sample
        ("length", "<i4"),  # tokens
        ("document", "<i8"),  # row of documents.parquet
        ("token_offset", "<i8"),  # tokens of the document before this piece
        ("byte_offset", "<i8"),  # bytes of the document before this piece
    ]
)
NO_TARGET = -100
"""What a position without a next token has as target; torch's cross entropy ignores it."""
SCHEMA_VERSION = 1


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"tokens-{number:05d}.bin"


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences; every array is [n, seq_len]."""

    input_ids: npt.NDArray[np.int64]
    segment_ids: npt.NDArray[np.int32]
    """From 1 in each sequence; 0 is padding."""
    position_ids: npt.NDArray[np.int64]
    """From 0 in each segment."""
    targets: npt.NDArray[np.int64]
    """The next token of the same segment; NO_TARGET at its end and on padding."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where tokens `start` to `start + num_tokens` of a sample come from."""

    start: int
    num_tokens: int
    document_id: str
    source: str
    token_offset: int
    """Of its first token, in the document."""
    byte_offset: int
    """Of its first byte, in the UTF-8 of the document's cleaned text."""
    num_bytes: int


class PackedSplit:
    """One split of a dataset artifact, memory-mapped."""

    def __init__(self, folder: Path, index: dict[str, Any], split: Split) -> None:
        figures = index["splits"][split]
        self.seq_len: int = index["seq_len"]
        self.vocab_size: int = index["vocab_size"]
        self.num_samples: int = figures["num_samples"]
        self.num_documents: int = figures["num_documents"]
        self._root, self._folder = folder, folder / split
        self._shard_samples: int = index["shard_samples"]
        num_shards = -(-self.num_samples // self._shard_samples)
        shards = [
            np.memmap(self._folder / shard_name(n), np.dtype(index["dtype"]), "r")
            for n in range(num_shards)
        ]
        self._shards = [shard.reshape(-1, self.seq_len) for shard in shards]
        self._pieces = np.load(self._folder / PIECES, mmap_mode="r")
        self._piece_starts = np.load(self._folder / PIECE_STARTS, mmap_mode="r")

    @classmethod
    def open(cls, artifact: Path, split: Split) -> PackedSplit:
        """Open a split of a dataset artifact's folder.

        Raises:
            ArtifactError: the folder is no dataset, or a file of it is missing or truncated.
        """
        index = read_index(artifact)
        try:
            return cls(artifact, index, split)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{artifact / split} cannot be opened: {error}",
                code="artifact-altered",
                hint="remove it (`raylm models rm`) and run the data stage again",
            ) from error

    def tokens(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Token ids of samples, int64 [n, seq_len]."""
        rows = self._checked(indices)
        out = np.empty((len(rows), self.seq_len), np.int64)
        for place, row in enumerate(rows):
            shard, number = divmod(int(row), self._shard_samples)
            out[place] = self._shards[shard][number]
        return out

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Samples by number, in the order asked for; indices [n]."""
        rows = self._checked(indices)
        ids = self.tokens(rows)
        segments, positions = self._segments(rows)
        targets = np.full_like(ids, NO_TARGET)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        np.copyto(targets[:, :-1], ids[:, 1:], where=same)
        return Batch(ids, segments, positions, targets)

    def sample(self, index: int) -> Batch:
        """One sample; every array is [1, seq_len]."""
        return self.batch([index])

    def num_targets(self, indices: npt.ArrayLike) -> int:
        """Targets in these samples together, without reading their tokens."""
        picks, _ = self._pieces_of(self._checked(indices))
        return int(self._pieces["length"][picks].sum()) - len(picks)

    def trace(self, index: int) -> list[Piece]:
        """Where each token of a sample comes from, in the order of the sample."""
        (row,) = self._checked([index])
        pieces = self._pieces[self._piece_starts[row] : self._piece_starts[row + 1]]
        lengths = self._token_bytes[self.tokens([row])[0]]
        table = self._documents.take(pieces["document"]).to_pylist()
        return [
            Piece(
                start=int(piece["start"]),
                num_tokens=int(piece["length"]),
                document_id=document["id"],
                source=document["source"],
                token_offset=int(piece["token_offset"]),
                byte_offset=int(piece["byte_offset"]),
                num_bytes=int(lengths[piece["start"] : piece["start"] + piece["length"]].sum()),
            )
            for piece, document in zip(pieces, table, strict=True)
        ]

    def _segments(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Segment and position of every token of samples, [n, seq_len] each."""
        picks, counts = self._pieces_of(rows)
        pieces = self._pieces[picks]
        start = pieces["start"].astype(np.int64)
        row = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(picks)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Pieces lie without gaps from the start of a sample: only its last token can tell
        # where padding begins.
        filled = np.add.reduceat(pieces["length"], np.cumsum(counts) - counts)
        segments = np.zeros((len(rows), self.seq_len), np.int32)
        positions = np.zeros((len(rows), self.seq_len), np.int64)
        inside = np.arange(self.seq_len) < filled[:, None]
        segments[inside] = np.repeat((number + 1).astype(np.int32), pieces["length"])
        flat = np.flatnonzero(inside)
        positions[inside] = flat - np.repeat(row * self.seq_len + start, pieces["length"])
        return segments, positions

    def _pieces_of(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of all pieces of samples, one after the other, and how many each has."""
        first = self._piece_starts[rows]
        counts = self._piece_starts[rows + 1] - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(first, counts) + within, counts

    def _checked(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        rows = np.asarray(indices, np.int64).reshape(-1)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_samples):
            raise IndexError(f"samples are 0 to {self.num_samples - 1}, asked for {rows}")
        return rows

    @cached_property
    def _documents(self) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self._folder / DOCUMENTS, columns=["id", "source"])

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int32]:
        return token_bytes(self._root)


def read_index(artifact: Path) -> dict[str, Any]:
    """index.json of a dataset artifact.

    Raises:
        ArtifactError: the folder is no dataset, or of a newer raylm.
    """
    try:
        index: dict[str, Any] = json.loads((artifact / INDEX).read_text(encoding="utf-8"))
        version = index["schema_version"]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{artifact} is not a dataset: {error}",
            code="artifact-missing",
            hint="`raylm data` makes one",
        ) from error
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{artifact} was written by a newer raylm (data schema {version})",
            code="artifact-newer",
            hint="upgrade raylm",
        )
    return index


def token_bytes(artifact: Path) -> npt.NDArray[np.int32]:
    """Bytes of text that each token stands for, int32 [vocab]; 0 for special tokens."""
    lengths: npt.NDArray[np.int32] = np.load(artifact / TOKEN_BYTES)
    return lengths
