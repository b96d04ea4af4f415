import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import raylm.data.pack as pack
from raylm.data.hashing import text_hash
from raylm.data.pack import Documents, cut_pieces, hex_ids, shuffled, write_split
from raylm.data.shards import DOCUMENTS


def documents(*lengths: int) -> Documents:
    counts = np.array(lengths, np.int64)
    return Documents(
        ids=np.array([text_hash(bytes([n])) for n in range(len(counts))]),
        sources=[f"{n}.txt" for n in range(len(counts))],
        num_bytes=counts * 2,
        # The token file is in another order than the documents are packed in.
        begin=np.cumsum(counts[::-1])[::-1] - counts,
        num_tokens=counts,
    )


def test_documents_are_laid_end_to_end_and_cut() -> None:
    pieces, places = cut_pieces(np.array([3, 9, 1, 3]), seq_len=4)
    assert places.tolist() == [0, 3, 4, 8, 12, 13]
    assert pieces["start"].tolist() == [0, 3, 0, 0, 0, 1]
    assert pieces["length"].tolist() == [3, 1, 4, 4, 1, 3]
    assert pieces["document"].tolist() == [0, 1, 1, 1, 2, 3]
    assert pieces["token_offset"].tolist() == [0, 0, 1, 5, 0, 0]


def test_a_document_that_ends_with_a_sample_leaves_no_empty_piece() -> None:
    pieces, _ = cut_pieces(np.array([4, 8]), seq_len=4)
    assert pieces["length"].tolist() == [4, 4, 4]
    assert pieces["document"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("chunk_tokens", [1, 5, 10**6])
@pytest.mark.parametrize("shard_samples", [1, 2, 100])
def test_a_split_has_every_token_once_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int, shard_samples: int
) -> None:
    monkeypatch.setattr(pack, "_CHUNK_TOKENS", chunk_tokens)
    docs = documents(3, 9, 1, 4)
    tokens = np.arange(17, dtype="<u2")
    lengths = np.full(20, 2, np.int32)
    figures = write_split(
        tmp_path / "train", docs, tokens, lengths,
        seq_len=4, shard_samples=shard_samples, padding=19,
    )  # fmt: skip
    shards = sorted((tmp_path / "train").glob("tokens-*.bin"))
    stored = np.concatenate([np.fromfile(f, "<u2") for f in shards])
    assert len(shards) == {1: 5, 2: 3, 100: 1}[shard_samples]
    assert stored.tolist() == [14, 15, 16, *range(5, 14), 4, 0, 1, 2, 3, 19, 19, 19]
    pieces = np.load(tmp_path / "train" / "pieces.npy")
    assert pieces["byte_offset"].tolist() == (pieces["token_offset"] * 2).tolist()
    assert np.load(tmp_path / "train" / "piece_starts.npy").tolist() == [0, 2, 3, 4, 6, 7]
    assert figures.to_json() == {
        "num_samples": 5,
        "num_documents": 4,
        "num_pieces": 7,
        "num_tokens": 17,
        "num_bytes": 34,
        "num_targets": 10,
        "num_padding": 3,
    }


def test_the_lineage_table_names_each_document(tmp_path: Path) -> None:
    docs = documents(5, 6)
    write_split(
        tmp_path / "s", docs, np.zeros(11, "<u4"), np.ones(1, np.int32),
        seq_len=8, shard_samples=8, padding=0,
    )  # fmt: skip
    assert pq.read_table(tmp_path / "s" / DOCUMENTS).to_pylist() == [
        {"id": text_hash(b"\0").hex(), "source": "0.txt", "num_bytes": 10, "num_tokens": 5},
        {"id": text_hash(b"\1").hex(), "source": "1.txt", "num_bytes": 12, "num_tokens": 6},
    ]


def test_the_order_depends_on_seed_and_ids_alone() -> None:
    ids = np.array([text_hash(str(n).encode()) for n in range(100)])
    by_id = {i.hex(): place for place, i in enumerate(ids[shuffled(ids, 0)].tolist())}
    turned = ids[::-1]
    again = {i.hex(): place for place, i in enumerate(turned[shuffled(turned, 0)].tolist())}
    assert by_id == again
    assert shuffled(ids, 0).tolist() != shuffled(ids, 1).tolist()
    assert sorted(shuffled(ids, 0).tolist()) == list(range(100))


def test_ids_are_32_hex_digits_even_when_they_end_in_nul() -> None:
    ids = np.array([b"\1" * 15 + b"\0", b"\2" * 16], dtype="S16")
    assert hex_ids(ids) == ["01" * 15 + "00", "02" * 16]
    assert json.dumps(hex_ids(ids))
