"""Whole records to rows: which row each lies in, and the files of a split.

The same records in the same order give the same bytes; nothing here depends on workers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylm.arrays import save_array
from raylm.config.data import Format
from raylm.data.bins import first_fit
from raylm.data.pack import Documents, ShardWriter, SplitFigures, Tokens, write_documents
from raylm.data.shards import DOCUMENTS, LABELS, SOURCE, SPAN_STARTS, SPANS
from raylm.data.stream import I64, PIECE, PIECE_STARTS, PIECES, numbered, ranges

_CHUNK_TOKENS = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Records:
    """Columns [n] over records: places in the token files and in the table of spans."""

    begin: I64
    num_tokens: I64
    first: I64
    """Tokens of the first segment."""
    source_begin: I64
    num_source: I64
    span_begin: I64
    num_spans: I64
    label: npt.NDArray[np.int32]
    """Of `labels`: the class; else 0."""

    def take(self, order: I64) -> Records:
        """Some of them, in another order."""
        return Records(*(getattr(self, column.name)[order] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Files:
    """What the columns of `Records` point into, and how it is written."""

    tokens: Tokens
    source: Tokens
    spans: npt.NDArray[np.void]
    """SPAN, from each record's first token."""
    token_lengths: npt.NDArray[np.int32]
    """Bytes of each token, [vocab]."""
    format: Format
    seq_len: int
    source_len: int | None
    shard_samples: int
    padding: int
    """Token that fills what is left of a row."""


@dataclass(frozen=True, slots=True)
class Written:
    """Figures of a split; the last two for what the tokenizer does for its text."""

    figures: SplitFigures
    text_bytes: int
    text_tokens: int
    """Tokens that stand for text."""


def write_records(folder: Path, documents: Documents, records: Records, files: Files) -> Written:
    """Write a split; `documents` and `records` are in packing order, at least one.

    Where a row has several records, they lie in packing order.
    """
    sizes, limits = [records.num_tokens], [files.seq_len]
    if files.source_len is not None:
        sizes.append(records.num_source)
        limits.append(files.source_len)
    row = first_fit(np.stack(sizes, axis=1), tuple(limits))
    order = np.argsort(row, kind="stable")
    row, records, documents = row[order], records.take(order), documents.take(order)
    num_rows = int(row[-1]) + 1
    pieces = _pieces(records, row)
    num_bytes, text_tokens = _write_stream(
        folder, files.tokens, records.begin[pieces["document"]] + pieces["token_offset"],
        pieces, row[pieces["document"]], files.seq_len, files,
    )  # fmt: skip
    num_source = 0
    if files.source_len is not None:
        sources = _pieces(replace(records, num_tokens=records.num_source,
                                  first=records.num_source), row)  # fmt: skip
        _write_stream(folder / SOURCE, files.source, records.source_begin, sources, row,
                      files.source_len, files)  # fmt: skip
        num_source = int(records.num_source.sum())
    num_targets = _write_targets(folder, records, row, pieces, files)
    write_documents(folder / DOCUMENTS, documents)
    num_tokens = int(records.num_tokens.sum())
    figures = SplitFigures(
        num_samples=num_rows,
        num_documents=len(row),
        num_pieces=len(pieces),
        num_tokens=num_tokens,
        num_bytes=int(documents.num_bytes.sum()),
        num_targets=num_targets,
        num_padding=num_rows * files.seq_len - num_tokens,
    )
    if files.source_len is not None:
        figures = replace(
            figures,
            num_source_tokens=num_source,
            num_source_padding=num_rows * files.source_len - num_source,
        )
    return Written(figures, int(num_bytes.sum()), text_tokens)


def _pieces(records: Records, row: I64) -> npt.NDArray[np.void]:
    """PIECE for each segment, in the order of rows; `row` is that of each record."""
    counts = 1 + (records.first < records.num_tokens)
    document = np.repeat(np.arange(len(row)), counts)
    first = records.first[document]
    second = numbered(counts) == 1
    length = np.where(second, records.num_tokens[document] - first, first)
    pieces = np.zeros(len(document), PIECE)
    pieces["document"] = document
    pieces["length"] = length
    pieces["token_offset"] = np.where(second, first, 0)
    before = np.cumsum(length) - length
    piece_row = row[document]
    pieces["start"] = before - before[np.searchsorted(piece_row, piece_row)]
    return pieces


def _write_stream(
    folder: Path,
    tokens: Tokens,
    begin: I64,
    pieces: npt.NDArray[np.void],
    row: I64,
    seq_len: int,
    files: Files,
) -> tuple[I64, int]:
    """Write shards and pieces of one stream; `begin` is where each piece starts in `tokens`.

    Returns the bytes of text of each piece, and how many tokens stand for text.
    """
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, seq_len * files.shard_samples)
    num_rows = int(row[-1]) + 1
    num_bytes = np.zeros(len(pieces), np.int64)
    text_tokens = 0
    rows_at_once = max(1, _CHUNK_TOKENS // seq_len)
    for first_row in range(0, num_rows, rows_at_once):
        end_row = min(first_row + rows_at_once, num_rows)
        here = slice(*np.searchsorted(row, [first_row, end_row]))
        length = pieces["length"][here].astype(np.int64)
        places, _ = ranges(begin[here], begin[here] + length)
        chunk = tokens[places]
        block = np.full((end_row - first_row) * seq_len, files.padding, tokens.dtype)
        start = (row[here] - first_row) * seq_len + pieces["start"][here]
        block[np.repeat(start, length) + numbered(length)] = chunk
        writer.write(block)
        lengths = files.token_lengths[chunk]
        num_bytes[here] = np.add.reduceat(lengths, np.cumsum(length) - length, dtype=np.int64)
        text_tokens += int((lengths > 0).sum())
    writer.close()
    # Only a preference has a second piece, and right behind its first.
    pieces["byte_offset"] = np.where(pieces["token_offset"] > 0, np.roll(num_bytes, 1), 0)
    save_array(folder / PIECES, pieces)
    save_array(folder / PIECE_STARTS, np.searchsorted(row, np.arange(num_rows + 1)))
    return num_bytes, text_tokens


def _write_targets(
    folder: Path, records: Records, row: I64, pieces: npt.NDArray[np.void], files: Files
) -> int:
    """Write what tells a target from the rest; what the loss of the split is divided by."""
    if files.format == "pairs":
        return int(records.num_tokens.sum())
    if files.format == "labels":
        save_array(folder / LABELS, records.label)
        return len(row)
    picks, counts = ranges(records.span_begin, records.span_begin + records.num_spans)
    spans = files.spans[picks]
    record_start = pieces["start"][pieces["token_offset"] == 0]
    spans["start"] += np.repeat(record_start, counts)
    save_array(folder / SPANS, spans)
    span_row = np.repeat(row, counts)
    save_array(folder / SPAN_STARTS, np.searchsorted(span_row, np.arange(int(row[-1]) + 2)))
    return len(row) if files.format == "preferences" else int(spans["length"].sum())
