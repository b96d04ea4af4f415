"""Packing and reading back every format, with tokens that say which record they are of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raylm.data.pack_records as pack_records
from raylm.config.data import Format
from raylm.data.hashing import text_hash
from raylm.data.pack import Documents
from raylm.data.pack_records import Files, Records, write_records
from raylm.data.shards import NO_TARGET, SCHEMA_VERSION, PackedSplit
from raylm.data.targets import SPAN

NO = NO_TARGET
PAD = 999


def write(root: Path, format: Format, lengths: list[int], **more: Any) -> PackedSplit:
    """Record r has the tokens 100 * r, 100 * r + 1, ...; they lie in the file in turned order."""
    num = np.array(lengths, np.int64)
    source = np.array(more.get("source", [0] * len(num)), np.int64)
    begin = np.cumsum(num[::-1])[::-1] - num
    file = np.concatenate([100 * r + np.arange(n) for r, n in reversed(list(enumerate(lengths)))])
    spans: list[list[tuple[int, int]]] = more.get("spans", [[] for _ in lengths])
    num_spans = np.array([len(s) for s in spans])
    records = Records(
        begin=begin,
        num_tokens=num,
        first=np.array(more.get("first", lengths), np.int64),
        source_begin=np.cumsum(source) - source,
        num_source=source,
        span_begin=np.cumsum(num_spans) - num_spans,
        num_spans=num_spans,
        label=np.array(more.get("label", [0] * len(num)), np.int32),
    )
    documents = Documents(
        ids=np.array([text_hash(bytes([r])) for r in range(len(num))]),
        sources=[f"a.jsonl:{r}" for r in range(len(num))],
        num_bytes=num * 2,
        begin=begin,
        num_tokens=num + source,
    )
    source_len = 6 if format == "pairs" else None
    files = Files(
        tokens=file.astype("<u2"),
        source=np.concatenate([1000 * (r + 1) + np.arange(n) for r, n in enumerate(source)]).astype(
            "<u2"
        ),
        spans=np.array([s for of_record in spans for s in of_record], SPAN),
        token_lengths=np.full(10_000, 3, np.int32),
        format=format,
        seq_len=8,
        source_len=source_len,
        shard_samples=2,
        padding=PAD,
    )
    written = write_records(root / "train", documents, records, files)
    np.save(root / "token_bytes.npy", files.token_lengths)
    index = {
        "schema_version": SCHEMA_VERSION, "format": format, "seq_len": 8, "vocab_size": 10_000,
        "dtype": "<u2", "shard_samples": 2, "splits": {"train": written.figures.to_json()},
        **({"source_len": 6, "decoder_start_id": 7777} if source_len else {}),
        **({"labels": ["a", "b", "c"]} if format == "labels" else {}),
    }  # fmt: skip
    (root / "index.json").write_text(json.dumps(index))
    split = PackedSplit.open(root, "train")
    everything = np.arange(split.num_samples)
    assert split.num_targets(everything) == written.figures.num_targets
    assert sum(split.num_targets([row]) for row in everything) == written.figures.num_targets
    assert written.text_tokens == num.sum() and written.text_bytes == 3 * num.sum()
    return split


@pytest.mark.parametrize("chunk_tokens", [1, 16, 10**6])
def test_chat_rows_hold_whole_records_and_their_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int
) -> None:
    monkeypatch.setattr(pack_records, "_CHUNK_TOKENS", chunk_tokens)
    spans = [[(0, 1)], [(1, 2), (5, 2)], [(0, 2)], [(2, 1)]]
    split = write(tmp_path, "chat", [2, 8, 3, 4], spans=spans)
    batch = split.batch([0, 1, 2])
    assert batch.input_ids.tolist() == [
        [100, 101, 102, 103, 104, 105, 106, 107],
        [200, 201, 202, 300, 301, 302, 303, PAD],
        [0, 1, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch.segment_ids.tolist() == [
        [1] * 8, [1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]
    ]  # fmt: skip
    assert batch.position_ids[1].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert batch.targets.tolist() == [
        [NO, 102, 103, NO, NO, 106, 107, NO],
        [201, 202, NO, NO, NO, 303, NO, NO],
        [1, NO, NO, NO, NO, NO, NO, NO],
    ]
    assert [split.num_targets([row]) for row in range(3)] == [4, 3, 1]
    assert [piece.source for piece in split.trace(1)] == ["a.jsonl:2", "a.jsonl:3"]
    assert len(list((tmp_path / "train").glob("tokens-*.bin"))) == 2


def test_pairs_are_shifted_right_and_meet_their_source(tmp_path: Path) -> None:
    split = write(tmp_path, "pairs", [3, 4, 2], source=[2, 3, 5])
    assert (split.format, split.source_len, split.num_samples) == ("pairs", 6, 2)
    batch = split.batch([1, 0])
    assert batch.source is not None
    assert batch.input_ids.tolist() == [
        [7777, 0, 1, 7777, 100, 101, 102, PAD],
        [7777, 200, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch.targets.tolist() == [
        [0, 1, 2, 100, 101, 102, 103, NO], [200, 201, NO, NO, NO, NO, NO, NO]
    ]  # fmt: skip
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.source.input_ids.tolist() == [
        [1000, 1001, 2000, 2001, 2002, PAD], [3000, 3001, 3002, 3003, 3004, PAD]
    ]  # fmt: skip
    assert batch.source.segment_ids.tolist() == [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0]]
    assert batch.source.position_ids.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0]]
    assert (batch.source.targets == NO).all()
    assert split.num_targets([1]) == 7
    assert split.tokens([1])[0].tolist() == [0, 1, 2, 100, 101, 102, 103, PAD]


def test_labels_are_those_of_the_segments(tmp_path: Path) -> None:
    split = write(tmp_path, "labels", [5, 1, 7, 2], label=[2, 0, 1, 1])
    assert (split.labels, split.num_labels, split.num_samples) == (("a", "b", "c"), 3, 2)
    batch = split.batch([0, 1])
    assert batch.labels is not None
    assert batch.input_ids.tolist() == [
        [100, *range(200, 207)], [0, 1, 2, 3, 4, 300, 301, PAD]
    ]  # fmt: skip
    assert batch.labels.tolist() == [[0, 1], [2, 1]]
    assert (batch.targets == NO).all()
    assert [split.num_targets(rows) for rows in ([0], [1, 1], [])] == [2, 4, 0]


def test_a_preference_is_two_segments_side_by_side(tmp_path: Path) -> None:
    spans = [[(0, 1), (3, 1)], [(1, 1), (4, 2)]]
    split = write(tmp_path, "preferences", [5, 7], first=[2, 3], spans=spans)
    batch = split.batch([0, 1])
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 2, 2, 0, 0, 0]]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert batch.targets.tolist() == [
        [NO, 102, NO, NO, 105, 106, NO, NO], [1, NO, NO, 4, NO, NO, NO, NO]
    ]  # fmt: skip
    assert [split.num_targets(rows) for rows in ([0], [0, 1])] == [1, 2]
    chosen, rejected = split.trace(0)
    assert (chosen.source, rejected.source) == ("a.jsonl:1", "a.jsonl:1")
    assert (chosen.token_offset, chosen.byte_offset, chosen.num_bytes) == (0, 0, 9)
    assert (rejected.token_offset, rejected.byte_offset, rejected.num_bytes) == (3, 9, 12)


def test_an_empty_batch_has_no_rows(tmp_path: Path) -> None:
    split = write(tmp_path, "chat", [4], spans=[[(0, 1)]])
    assert split.batch([]).targets.shape == (0, 8)
    assert split.num_targets([]) == 0


def test_the_figures_count_both_sides_of_pairs(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [3, 4, 2], source=[2, 3, 5])
    assert json.loads((tmp_path / "index.json").read_text())["splits"]["train"] == {
        "num_samples": 2, "num_documents": 3, "num_pieces": 3, "num_tokens": 9, "num_bytes": 18,
        "num_targets": 9, "num_padding": 7, "num_source_tokens": 10, "num_source_padding": 2,
    }  # fmt: skip
