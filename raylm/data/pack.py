"""Tokens of documents to rows of equal length, and the record of what lies where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raylm.arrays import save_array
from raylm.data.hashing import HASH_BYTES, HashArray, seeded
from raylm.data.shards import DOCUMENTS
from raylm.data.stream import PIECE, PIECE_STARTS, PIECES, shard_name

_CHUNK_TOKENS = 4 * 2**20
I64 = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.unsignedinteger]


def shuffled(ids: HashArray, seed: int) -> I64:
    """The order in which documents are packed: a function of the seed and their ids, [n]."""
    return np.lexsort((ids, seeded(ids, seed, "packing")))


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents in packing order; `begin` and `num_tokens` are places in a token file."""

    ids: HashArray
    sources: list[str]
    num_bytes: I64
    begin: I64
    num_tokens: I64

    def take(self, order: I64) -> Documents:
        """Some of them, in another order."""
        return Documents(
            self.ids[order],
            [self.sources[place] for place in order.tolist()],
            self.num_bytes[order],
            self.begin[order],
            self.num_tokens[order],
        )


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """What index.json says of a split."""

    num_samples: int
    num_documents: int
    num_pieces: int
    num_tokens: int
    """End-of-text tokens included, padding not."""
    num_bytes: int
    """UTF-8 of the cleaned text."""
    num_targets: int
    num_padding: int
    num_source_tokens: int | None = None
    """Of `pairs`: on the encoder's side, end-of-text included; `num_tokens` is the decoder's."""
    num_source_padding: int | None = None

    def to_json(self) -> dict[str, int]:
        """Plain values, without those that the format does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def cut_pieces(num_tokens: I64, seq_len: int) -> tuple[npt.NDArray[Any], I64]:
    """Lay documents end to end and cut: PIECE [pieces] (no byte offsets yet), and their
    places in the stream [pieces]."""
    ends = np.cumsum(num_tokens)
    begins = ends - num_tokens
    total = int(ends[-1])
    places = np.union1d(begins, np.arange(0, total, seq_len))
    pieces = np.zeros(len(places), PIECE)
    pieces["start"] = places % seq_len
    pieces["length"] = np.diff(places, append=total)
    pieces["document"] = np.searchsorted(ends, places, side="right")
    pieces["token_offset"] = places - begins[pieces["document"]]
    return pieces, places


def write_split(
    folder: Path,
    documents: Documents,
    tokens: Tokens,
    token_lengths: npt.NDArray[np.int32],
    *,
    seq_len: int,
    shard_samples: int,
    padding: int,
) -> SplitFigures:
    """Write shards, pieces and documents of a split; the same input gives the same bytes.

    Args:
        folder: made here.
        documents: at least one, each with at least one token.
        tokens: the token file that `documents` points into, of the shards' dtype.
        token_lengths: bytes of each token [vocab].
        padding: token that fills the last sample.
    """
    folder.mkdir(parents=True)
    pieces, places = cut_pieces(documents.num_tokens, seq_len)
    bytes_before = np.zeros(len(places), np.int64)
    writer = ShardWriter(folder, seq_len * shard_samples)
    place = num_bytes = 0
    for chunk in _stream(documents, tokens):
        writer.write(chunk)
        running = num_bytes + np.concatenate([[0], np.cumsum(token_lengths[chunk], dtype=np.int64)])
        here = slice(*np.searchsorted(places, [place, place + len(chunk)]))
        bytes_before[here] = running[places[here] - place]
        place, num_bytes = place + len(chunk), int(running[-1])
    num_samples = -(-place // seq_len)
    num_padding = num_samples * seq_len - place
    writer.write(np.full(num_padding, padding, tokens.dtype))
    writer.close()
    first = np.flatnonzero(pieces["token_offset"] == 0)
    pieces["byte_offset"] = bytes_before - bytes_before[first][pieces["document"]]
    save_array(folder / PIECES, pieces)
    save_array(folder / PIECE_STARTS, np.searchsorted(places, np.arange(num_samples + 1) * seq_len))
    write_documents(folder / DOCUMENTS, documents)
    return SplitFigures(
        num_samples=num_samples,
        num_documents=len(documents.sources),
        num_pieces=len(pieces),
        num_tokens=place,
        num_bytes=int(documents.num_bytes.sum()),
        num_targets=place - len(pieces),
        num_padding=num_padding,
    )


def _stream(documents: Documents, tokens: Tokens) -> Iterator[Tokens]:
    """The documents' tokens end to end, in chunks of about _CHUNK_TOKENS."""
    held: list[Tokens] = []
    room = _CHUNK_TOKENS
    for begin, count in zip(documents.begin.tolist(), documents.num_tokens.tolist(), strict=True):
        held.append(tokens[begin : begin + count])
        room -= count
        if room <= 0:
            yield np.concatenate(held)
            held, room = [], _CHUNK_TOKENS
    if held:
        yield np.concatenate(held)


class ShardWriter:
    """Writes a stream of tokens to files of `shard_tokens` each."""

    def __init__(self, folder: Path, shard_tokens: int) -> None:
        self._folder, self._shard_tokens = folder, shard_tokens
        self._place = 0
        self._file: Any = None

    def write(self, tokens: Tokens) -> None:
        """Go on with these tokens, in new files where one is full."""
        while len(tokens):
            number, inside = divmod(self._place, self._shard_tokens)
            if inside == 0:
                self.close()
                self._file = (self._folder / shard_name(number)).open("wb")
            part = tokens[: self._shard_tokens - inside]
            self._file.write(part.tobytes())
            self._place += len(part)
            tokens = tokens[len(part) :]

    def close(self) -> None:
        """End the last file."""
        if self._file is not None:
            self._file.close()


def write_documents(path: Path, documents: Documents) -> None:
    """Write the table that pieces point into; its rows are the documents in their order."""
    table = pa.table(
        {
            "id": hex_ids(documents.ids),
            "source": documents.sources,
            "num_bytes": documents.num_bytes,
            "num_tokens": documents.num_tokens,
        }
    )
    pq.write_table(table, path, compression="zstd")


def hex_ids(ids: HashArray) -> list[str]:
    """Ids as people write them: 32 hex digits."""
    data = ids.astype(f"S{HASH_BYTES}").tobytes().hex()
    width = 2 * HASH_BYTES
    return [data[at : at + width] for at in range(0, len(data), width)]
