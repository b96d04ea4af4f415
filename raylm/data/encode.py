"""The second pass: read and clean the kept documents again, and turn them into tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from raylm.config.data import DataConfig
from raylm.data.hashing import HASH_BYTES, text_hash
from raylm.data.parts import PART_SCHEMA, Part
from raylm.data.read import End
from raylm.data.scan import Corpus, cleaned
from raylm.data.tokenizer import load_tokenizer, token_lengths
from raylm.errors import DataError

_BATCH_BYTES = 2**20
KEPT_SCHEMA = pa.schema(
    [*PART_SCHEMA, ("kept", pa.large_list(pa.int32())), ("hashes", pa.large_binary())]
)
"""Parts with what `kept_rows` says of each."""
Tokens = npt.NDArray[np.unsignedinteger]


def token_dtype(vocab: int) -> np.dtype[np.unsignedinteger]:
    """The smallest little-endian type that holds every token id."""
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def kept_rows(corpus: Corpus, kept: npt.NDArray[np.bool_]) -> dict[int, tuple[list[int], bytes]]:
    """For each part with kept documents: their numbers among its readable ones, their hashes."""
    first = np.searchsorted(corpus.part, np.arange(len(corpus.parts)))
    documents = np.flatnonzero(kept)
    rows: dict[int, tuple[list[int], bytes]] = {}
    for group in np.split(documents, np.flatnonzero(np.diff(corpus.part[documents])) + 1):
        if len(group):
            part = int(corpus.part[group[0]])
            rows[part] = ((group - first[part]).tolist(), corpus.hashes[group].tobytes())
    return rows


def encode_parts(
    group: pa.Table, *, config: DataConfig, tokenizer: str, eos: int, dtype: str
) -> Iterator[pa.Table]:
    """Tokens of the kept documents of some parts, each ended by `eos`.

    The group's columns `kept` and `hashes` are those of `kept_rows`.

    Yields:
        Tables with `tokens` (large_list) and `exact`: whether the tokens' bytes add up to
        the document's.

    Raises:
        DataError: a document is not what the first pass saw.
    """
    # One task, one thread: parallel work is Ray's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = _Encoder(*_loaded(tokenizer), eos, np.dtype(dtype))
    for row in group.to_pylist():
        kept, hashes = row.pop("kept"), row.pop("hashes")
        texts: list[str] = []
        num_bytes = 0
        for text in kept_contents(Part(**row), kept, hashes, config):
            texts.append(text)
            num_bytes += len(text)
            if num_bytes > _BATCH_BYTES:
                yield encoder.table(texts)
                texts, num_bytes = [], 0
        if texts:
            yield encoder.table(texts)


@lru_cache(maxsize=1)
def _loaded(serialized: str) -> tuple[Tokenizer, npt.NDArray[np.int32]]:
    tokenizer = load_tokenizer(serialized)
    return tokenizer, token_lengths(tokenizer)


@dataclass(frozen=True, slots=True)
class _Encoder:
    tokenizer: Tokenizer
    lengths: npt.NDArray[np.int32]
    eos: int
    dtype: np.dtype[np.unsignedinteger]

    def table(self, texts: Sequence[str]) -> pa.Table:
        """One row a text."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        tokens = [np.array([*e.ids, self.eos], self.dtype) for e in encoded]
        exact = [
            int(self.lengths[t].sum()) == len(text.encode())
            for t, text in zip(tokens, texts, strict=True)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
        values = pa.array(np.concatenate(tokens))
        column = pa.LargeListArray.from_arrays(pa.array(offsets), values)
        return pa.table({"tokens": column, "exact": pa.array(exact)})


def kept_contents(part: Part, kept: list[int], hashes: bytes, config: DataConfig) -> Iterator[str]:
    """The contents of a part's kept documents, in order: text, or a record as `take` writes it.

    Raises:
        DataError: one is not what the first pass saw.
    """
    readable = (item for item in cleaned(part, config) if not isinstance(item, End))
    documents = (document for _, document in readable if document is not None)
    wanted = 0
    for number, document in enumerate(documents):
        if wanted < len(kept) and kept[wanted] == number:
            expected = hashes[wanted * HASH_BYTES : (wanted + 1) * HASH_BYTES]
            if text_hash(document.content.encode()) != expected:
                raise _changed(part)
            wanted += 1
            yield document.content
    if wanted < len(kept):
        raise _changed(part)


def _changed(part: Part) -> DataError:
    return DataError(
        f"{part.name} changed while it was being read",
        code="data-changed",
        hint="run again once nothing writes to the corpus any more",
    )


def tokens_of(table: pa.Table) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """All tokens of a table of `encode_parts` in one array, and how many each row has."""
    chunks = table["tokens"].chunks
    tokens = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    counts = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
    return tokens, counts
