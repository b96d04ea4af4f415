"""The first pass: read and clean every document, and bring home its hash and its size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raylm.config.data import DataConfig
from raylm.data.clean import clean
from raylm.data.hashing import HASH_BYTES, HashArray, text_hash
from raylm.data.parts import Part
from raylm.data.read import End, Raw, read_part
from raylm.data.records import BadRecord, Document, take
from raylm.data.sample import Excerpt, Sampling, draw

_FLUSH_BYTES = 16 * 2**20
_END = "end-of-part"
SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        ("line", pa.int64()),
        ("raw_bytes", pa.int64()),
        ("num_bytes", pa.int64()),
        ("repaired", pa.bool_()),
        ("hash", pa.binary(HASH_BYTES)),
        ("label", pa.string()),
        ("excerpts", pa.list_(pa.struct([("position", pa.float64()), ("text", pa.string())]))),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("suggestion", pa.string()),
    ]
)

_COLUMNS = ["part", "line", "raw_bytes", "num_bytes", "repaired", "hash", "label"]


def cleaned(part: Part, config: DataConfig) -> Iterator[tuple[Raw, Document | None] | End]:
    """Documents of a part, None for what could not be read or is not as it should be; then End."""
    repairs: list[bool] = []

    def tidy(text: str) -> str:
        found = clean(text, normalize=config.normalize, fix_mojibake=config.fix_mojibake)
        repairs.append(found.repaired)
        return found.text

    for raw in read_part(part, config.text_field if config.format == "text" else None):
        if isinstance(raw, End):
            yield raw
        elif raw.reason:
            yield raw, None
        else:
            repairs[:] = [raw.repaired]
            try:
                document = (
                    Document.of_text(tidy(raw.text or ""))
                    if raw.record is None
                    else take(raw.record, config, tidy)
                )
            except BadRecord as bad:
                yield Raw(raw.line, raw.num_bytes, None, False, *bad.args), None
            else:
                yield replace(raw, text="", record=None, repaired=any(repairs)), document


def scan_parts(
    group: pa.Table, *, config: DataConfig, seed: int, sampling: Sampling
) -> Iterator[pa.Table]:
    """Hash every document of some parts; a sample of their text comes along."""
    rows: list[dict[str, Any]] = []
    held = 0
    for part in (Part(**row) for row in group.to_pylist()):
        for item in cleaned(part, config):
            if isinstance(item, End):
                rows.append({"part": part.number, "line": item.num_lines, "reason": _END})
                continue
            row = _row(part, *item)
            if (document := item[1]) is not None:
                drawn = draw(document.text, row["hash"], seed, sampling)
                row["excerpts"] = [{"position": e.position, "text": e.text} for e in drawn]
                held += row["num_bytes"] if row["excerpts"] else 0
            held += 256
            rows.append(row)
            if held > _FLUSH_BYTES:
                yield pa.Table.from_pylist(rows, schema=SCHEMA)
                rows, held = [], 0
    yield pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(part: Part, raw: Raw, document: Document | None) -> dict[str, Any]:
    row: dict[str, Any] = {"part": part.number, "line": raw.line, "raw_bytes": raw.num_bytes}
    if document is None:
        why = {"reason": raw.reason, "detail": raw.detail, "suggestion": raw.suggestion}
        return row | why
    data = document.content.encode()
    return row | {
        # A text is its own content: it is encoded once.
        "num_bytes": len(data) if document.text is document.content else document.num_bytes,
        "repaired": raw.repaired,
        "hash": text_hash(data),
        "label": document.label,
    }


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record or file that could not be read."""

    source: str
    reason: str
    detail: str
    num_bytes: int
    jsonl: bool


@dataclass(slots=True)
class Corpus:
    """What the first pass found: readable documents as columns, in source order."""

    parts: list[Part]
    part: npt.NDArray[np.int32]
    line: npt.NDArray[np.int64]
    """Line in the file, from 1; 0 where the file is the document."""
    raw_bytes: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    hashes: HashArray
    num_repaired: int
    excerpts: list[tuple[int, Excerpt]]
    """(document, excerpt) pairs that the tokenizer may be trained on."""
    set_aside: list[SetAside] = field(default_factory=list)
    suggestions: Counter[str] = field(default_factory=Counter)
    """Fields that records without `text_field` (or one of `fields`) probably meant."""
    label: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Of `labels`: place of each document's label in `label_values`."""
    label_values: list[str | int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.part)

    def source(self, document: int) -> str:
        """`file`, or `file:line` of a JSONL record."""
        name, line = self.parts[self.part[document]].name, self.line[document]
        return f"{name}:{line}" if line else name


def gather(parts: list[Part], tables: Iterable[pa.Table]) -> Corpus:
    """Put the tables of `scan_parts`, in order, together; lines become those of the file."""
    columns: list[pa.Table] = []
    excerpts: list[tuple[int, Excerpt]] = []
    set_aside: list[SetAside] = []
    suggestions: Counter[str] = Counter()
    lines = _LineNumbers(parts)
    num_documents = 0
    for table in tables:
        is_good = pc.is_null(table["reason"])
        for row in table.filter(pc.invert(is_good)).to_pylist():
            part = parts[row["part"]]
            if row["reason"] == _END:
                lines.end(part, row["line"])
                continue
            set_aside.append(_set_aside(part, row, lines.before[part.number]))
            if row["suggestion"]:
                suggestions[row["suggestion"]] += 1
        good = table.filter(is_good)
        for document, drawn in enumerate(good["excerpts"].to_pylist(), num_documents):
            excerpts += [(document, Excerpt(**e)) for e in drawn]
        num_documents += len(good)
        columns.append(good.select(_COLUMNS))
    whole = pa.concat_tables(columns) if columns else SCHEMA.empty_table()
    labels = pc.dictionary_encode(pc.drop_null(whole["label"])).combine_chunks()
    part, line = whole["part"].to_numpy(), whole["line"].to_numpy()
    return Corpus(
        parts=parts,
        part=part,
        line=np.where(line > 0, line + lines.before[part], 0),
        raw_bytes=whole["raw_bytes"].to_numpy(),
        num_bytes=whole["num_bytes"].to_numpy(),
        hashes=np.array(whole["hash"].to_pylist(), dtype=f"S{HASH_BYTES}"),
        num_repaired=int(pc.sum(whole["repaired"]).as_py() or 0),
        excerpts=excerpts,
        set_aside=set_aside,
        suggestions=suggestions,
        label=labels.indices.to_numpy(),
        label_values=[json.loads(value) for value in labels.dictionary.to_pylist()],
    )


def _set_aside(part: Part, row: dict[str, Any], lines_before: int) -> SetAside:
    source = f"{part.name}:{row['line'] + lines_before}" if part.jsonl else part.name
    return SetAside(source, row["reason"], row["detail"], row["raw_bytes"], part.jsonl)


class _LineNumbers:
    """How many lines of a file come before each of its parts; parts end in order."""

    def __init__(self, parts: list[Part]) -> None:
        self.before = np.zeros(len(parts), np.int64)
        self._parts = parts

    def end(self, part: Part, num_lines: int) -> None:
        following = part.number + 1
        if following < len(self._parts) and self._parts[following].start > 0:
            self.before[following] = self.before[part.number] + num_lines
