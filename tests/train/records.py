"""Datasets of random records, packed or one record a row: the same records in both layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import raylm.data.pack_records as pack_records
from raylm.config.data import Format
from raylm.data.hashing import text_hash
from raylm.data.pack import Documents
from raylm.data.pack_records import Files, Records, write_records
from raylm.data.shards import SCHEMA_VERSION, TEXT_SCHEMA_VERSION
from raylm.data.targets import SPAN

VOCAB = 96
EOS, PAD, MASK = 93, 94, 95
SEQ_LEN, SOURCE_LEN = 32, 32
PACKED_ROWS, NUM_RECORDS = 8, 24
"""Both can be cut over two workers and two micro-batches."""
LABELS = ("a", "b", "c")


def write_dataset(root: Path, format: Format, *, packed: bool = True, seed: int = 0) -> Path:
    """A dataset folder whose splits both hold the same records; packed, about three a row.

    Records differ in length, and so do the targets of rows: what divides a loss by anything
    but all targets of a step shows. A first-fit that never finds room is the padded layout.
    """
    columns, files = _records(format, seed)
    documents = Documents(
        ids=np.array([text_hash(bytes([r])) for r in range(NUM_RECORDS)]),
        sources=[f"a.jsonl:{r}" for r in range(NUM_RECORDS)],
        num_bytes=columns.num_tokens,
        begin=columns.begin,
        num_tokens=columns.num_tokens + columns.num_source,
    )
    fit = pack_records.first_fit if packed else lambda sizes, limits: np.arange(len(sizes))
    with patch.object(pack_records, "first_fit", fit):
        written = write_records(root / "train", documents, columns, files)
    assert written.figures.num_samples == (PACKED_ROWS if packed else NUM_RECORDS)
    shutil.copytree(root / "train", root / "held_out")
    np.save(root / "token_bytes.npy", files.token_lengths)
    figures = written.figures.to_json()
    index: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "format": format, "seq_len": SEQ_LEN,
        "vocab_size": VOCAB, "dtype": "<u2", "shard_samples": 1024,
        "splits": {"train": figures, "held_out": figures},
    }  # fmt: skip
    if format == "text":  # its files are those of records without any spans
        index |= {"schema_version": TEXT_SCHEMA_VERSION}
    if format == "pairs":
        index |= {"source_len": SOURCE_LEN, "decoder_start_id": PAD}
    if format == "labels":
        index |= {"labels": list(LABELS)}
    (root / "index.json").write_text(json.dumps(index))
    _write_tokenizer(root / "tokenizer")
    return root


def _records(format: Format, seed: int) -> tuple[Records, Files]:
    rng = np.random.default_rng(seed)
    length = np.tile([10, 11, 8, 14, 7, 9], NUM_RECORDS // 6)  # 29 tokens a packed row
    source = length[::-1].copy() if format == "pairs" else np.zeros_like(length)
    first, spans = length, [[] for _ in length]
    if format == "chat":
        spans = [[(1 + r % 3, n - 3 - r % 3)] for r, n in enumerate(length.tolist())]
    if format == "preferences":
        first = length // 2 + np.arange(NUM_RECORDS) % 2
        spans = [
            [(1, f - 2), (f + 1, n - f - 2)]
            for f, n in zip(first.tolist(), length.tolist(), strict=True)
        ]
    num_spans = np.array([len(of_record) for of_record in spans])
    columns = Records(
        begin=np.cumsum(length) - length,
        num_tokens=length,
        first=first,
        source_begin=np.cumsum(source) - source,
        num_source=source,
        span_begin=np.cumsum(num_spans) - num_spans,
        num_spans=num_spans,
        label=rng.integers(0, len(LABELS), NUM_RECORDS).astype(np.int32),
    )
    files = Files(
        tokens=rng.integers(0, EOS, length.sum()).astype("<u2"),
        source=rng.integers(0, EOS, source.sum()).astype("<u2"),
        spans=np.array([span for of_record in spans for span in of_record], SPAN),
        token_lengths=np.ones(VOCAB, np.int32),
        format="labels" if format == "text" else format,
        seq_len=SEQ_LEN,
        source_len=SOURCE_LEN if format == "pairs" else None,
        shard_samples=1024,
        padding=PAD,
    )
    return columns, files


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    roles = {"eos_token": EOS, "pad_token": PAD, "mask_token": MASK}
    added = [{"id": n, "content": f"<{n}>", "special": True} for n in roles.values()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    named = {role: f"<{n}>" for role, n in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
