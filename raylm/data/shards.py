"""The dataset artifact, and reading it: needs numpy alone, neither Ray nor torch.

    tokenizer/                 a Hugging Face tokenizer folder
    token_bytes.npy            int32 [vocab]: bytes of text that each token stands for
    index.json                 sequence length, vocabulary, dtype, and the figures of each split;
                               of records also format, label names, source_len, decoder_start_id
    report.json                the funnel: files, documents and bytes into and out of each step
    set_aside.jsonl            what could not be read: source, reason, detail
    train/, held_out/          a split:
        tokens-*.bin, pieces.npy, piece_starts.npy: the stream of sequences (stream.py)
        documents.parquet      id, source, num_bytes, num_tokens; row = PIECE.document
        source/                of `pairs`: the encoder's stream; its pieces match the decoder's
        spans.npy              of `chat` and `preferences`: SPAN [spans] and, in
        span_starts.npy        int64 [num_samples + 1], where those of each sample start
        labels.npy             of `labels`: int32 [pieces], place in index.json's labels

Documents of the format `text`, each ended by the tokenizer's end-of-text token, follow each
other in a shuffled order and are cut every `seq_len` tokens; the rest of the last sample is
padding. Records of the other formats are never cut over two samples: each is one piece (a
preference two, its chosen and its rejected side), and a sample may end in padding. A piece is
what a sample holds of one document. Pieces never see each other: they are separate segments,
and positions start at 0 in each. Byte offsets count the UTF-8 of the cleaned text that was
tokenised; a document's tokens, decoded, are exactly that text if index.json says
`exact_bytes` (a truncated record: what is left of it).

The stream of `pairs` holds what the decoder says, [t1 .. tm, end-of-text]; `batch` makes from
it what the decoder reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raylm.config.data import Format
from raylm.data import targets
from raylm.data.stream import Stream, ranges
from raylm.data.targets import NO_TARGET as NO_TARGET
from raylm.errors import ArtifactError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
INDEX, TOKEN_BYTES, DOCUMENTS = "index.json", "token_bytes.npy", "documents.parquet"
SOURCE, SPANS, SPAN_STARTS, LABELS = "source", "spans.npy", "span_starts.npy", "labels.npy"
TEXT_SCHEMA_VERSION, SCHEMA_VERSION = 1, 2
"""Of a dataset of text, which has not changed since, and of records."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences; an array is [n, seq_len] where nothing else is said."""

    input_ids: npt.NDArray[np.int64]
    segment_ids: npt.NDArray[np.int32]
    """From 1 in each sequence; 0 is padding."""
    position_ids: npt.NDArray[np.int64]
    """From 0 in each segment."""
    targets: npt.NDArray[np.int64]
    """The next token of the same segment where it counts, NO_TARGET elsewhere; `pairs`: what
    the decoder says where it reads `input_ids`."""
    source: Batch | None = None
    """Of `pairs`: the encoder's side, [n, source_len], without targets. Its segment k is the
    source of segment k here."""
    labels: npt.NDArray[np.int64] | None = None
    """Of `labels`: class of segment k + 1 in column k, NO_TARGET where there is no such segment;
    [n, most segments of a sequence]."""
    numbers: npt.NDArray[np.int64] | None = None
    """Global sample numbers [n], where training set them."""
    reference: npt.NDArray[np.float32] | None = None
    """Of `preferences`: log-probability of each segment's targets for the model at the start,
    where training set it; [n, segments of a row or more]."""


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
        self.format: Format = index.get("format", "text")
        self.seq_len: int = index["seq_len"]
        self.source_len: int | None = index.get("source_len")
        self.labels: tuple[str, ...] | None = (
            tuple(index["labels"]) if self.format == "labels" else None
        )
        self.vocab_size: int = index["vocab_size"]
        self.num_samples: int = figures["num_samples"]
        self.num_documents: int = figures["num_documents"]
        self._root, self._folder = folder, folder / split
        self._stream = self._open_stream(self._folder, index, self.seq_len)
        self._source: Stream | None = None
        if self.source_len is not None:
            self._source = self._open_stream(self._folder / SOURCE, index, self.source_len)
            self._decoder_start: int = index["decoder_start_id"]
        if self.format in ("chat", "preferences"):
            self._spans = np.load(self._folder / SPANS, mmap_mode="r")
            self._span_starts = np.load(self._folder / SPAN_STARTS, mmap_mode="r")
        if self.format == "labels":
            self._label_of_piece = np.load(self._folder / LABELS, mmap_mode="r")

    def _open_stream(self, folder: Path, index: dict[str, Any], seq_len: int) -> Stream:
        return Stream(folder, index["dtype"], seq_len, index["shard_samples"], self.num_samples)

    @property
    def num_labels(self) -> int | None:
        """Classes, where the format is `labels`."""
        return None if self.labels is None else len(self.labels)

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
        """Token ids of samples as they are stored, int64 [n, seq_len]."""
        return self._stream.tokens(self._checked(indices))

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Samples by number, in the order asked for; indices [n]."""
        rows = self._checked(indices)
        ids = self._stream.tokens(rows)
        segments, positions = self._stream.layout(rows)
        if self.format == "text":
            return Batch(ids, segments, positions, targets.of_next_tokens(ids, segments))
        if self._source is not None:
            said = np.where(segments > 0, ids, NO_TARGET)
            read = targets.shifted_right(ids, segments, positions, self._decoder_start)
            return Batch(read, segments, positions, said, source=self._source_batch(rows))
        if self.format == "labels":
            picks, counts = self._stream.pieces_of(rows)
            labels = targets.by_segment(self._label_of_piece[picks], counts)
            return Batch(ids, segments, positions, np.full_like(ids, NO_TARGET), labels=labels)
        picks, counts = ranges(self._span_starts[rows], self._span_starts[rows + 1])
        learned = targets.of_spans(ids, self._spans[picks], counts)
        return Batch(ids, segments, positions, learned)

    def _source_batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        assert self._source is not None
        ids = self._source.tokens(rows)
        return Batch(ids, *self._source.layout(rows), np.full_like(ids, NO_TARGET))

    def sample(self, index: int) -> Batch:
        """One sample; every array is [1, seq_len]."""
        return self.batch([index])

    def num_targets(self, indices: npt.ArrayLike) -> int:
        """What the loss of these samples is divided by, without reading their tokens: targets;
        of `labels` the labels, of `preferences` the pairs."""
        rows = self._checked(indices)
        if self.format == "chat":
            picks, _ = ranges(self._span_starts[rows], self._span_starts[rows + 1])
            return int(self._spans["length"][picks].sum())
        picks, _ = self._stream.pieces_of(rows)
        if self.format in ("labels", "preferences"):
            return len(picks) if self.format == "labels" else len(picks) // 2
        num_tokens = int(self._stream.pieces["length"][picks].sum())
        return num_tokens if self.format == "pairs" else num_tokens - len(picks)

    def trace(self, index: int) -> list[Piece]:
        """Where each token of a sample comes from, in the order of the sample."""
        (row,) = self._checked([index])
        pieces = self._stream.pieces[self._stream.pieces_of(np.array([row]))[0]]
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
