import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raylm.data.hashing import text_hash
from raylm.data.pack import Documents, write_split
from raylm.data.shards import NO_TARGET, SCHEMA_VERSION, PackedSplit, token_bytes
from raylm.errors import ArtifactError

SEQ_LEN = 8
ARRAYS = ("input_ids", "segment_ids", "position_ids", "targets")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Documents of 3, 20, 1, 8, 6 tokens: the k-th token of document d is 100 * d + k."""
    counts = np.array([3, 20, 1, 8, 6], np.int64)
    tokens = np.concatenate([100 * d + np.arange(n) for d, n in enumerate(counts)]).astype("<u2")
    docs = Documents(
        ids=np.array([text_hash(bytes([d])) for d in range(5)]),
        sources=[f"{d}.txt" for d in range(5)],
        num_bytes=counts * 3,
        begin=np.cumsum(counts) - counts,
        num_tokens=counts,
    )
    lengths = np.full(500, 3, np.int32)
    splits = {
        split: write_split(
            tmp_path / split, docs, tokens, lengths, seq_len=SEQ_LEN, shard_samples=2, padding=499
        ).to_json()
        for split in ("train", "held_out")
    }
    np.save(tmp_path / "token_bytes.npy", lengths)
    index = {
        "schema_version": SCHEMA_VERSION, "seq_len": SEQ_LEN, "vocab_size": 500, "dtype": "<u2",
        "shard_samples": 2, "splits": splits,
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_batch_has_segments_positions_and_targets(artifact: Path) -> None:
    split = PackedSplit.open(artifact, "train")
    assert (split.num_samples, split.seq_len, split.vocab_size) == (5, 8, 500)
    batch = split.batch(np.array([0, 2, 4]))
    assert batch.input_ids.tolist() == [
        [0, 1, 2, 100, 101, 102, 103, 104],
        [113, 114, 115, 116, 117, 118, 119, 200],
        [400, 401, 402, 403, 404, 405, 499, 499],
    ]
    assert batch.segment_ids.tolist() == [
        [1, 1, 1, 2, 2, 2, 2, 2],
        [1, 1, 1, 1, 1, 1, 1, 2],
        [1, 1, 1, 1, 1, 1, 0, 0],
    ]
    assert batch.position_ids.tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5, 6, 0],
        [0, 1, 2, 3, 4, 5, 0, 0],
    ]
    no = NO_TARGET
    assert batch.targets.tolist() == [
        [1, 2, no, 101, 102, 103, 104, no],
        [114, 115, 116, 117, 118, 119, no, no],
        [401, 402, 403, 404, 405, no, no, no],
    ]
    types = [getattr(batch, name).dtype for name in ARRAYS]
    assert types == [np.int64, np.int32, np.int64, np.int64]
    assert (batch.source, batch.labels, batch.numbers) == (None, None, None)
    assert (split.format, split.source_len, split.num_labels) == ("text", None, None)


def test_a_batch_is_its_samples_in_any_order_and_repeated(artifact: Path) -> None:
    split = PackedSplit.open(artifact, "train")
    batch = split.batch([3, 0, 3])
    for place, row in enumerate([3, 0, 3]):
        single = split.sample(row)
        for name in ARRAYS:
            assert getattr(batch, name)[place].tolist() == getattr(single, name)[0].tolist()
    assert split.batch([]).input_ids.shape == (0, SEQ_LEN)


def test_targets_are_counted_without_reading_tokens(artifact: Path) -> None:
    split = PackedSplit.open(artifact, "train")
    for rows in ([0], [4], [0, 1, 2, 3, 4], [2, 2]):
        assert split.num_targets(rows) == (split.batch(rows).targets != NO_TARGET).sum()


def test_a_trace_names_document_and_offsets(artifact: Path) -> None:
    first, second = PackedSplit.open(artifact, "train").trace(2)
    assert (first.source, first.document_id) == ("1.txt", text_hash(b"\1").hex())
    assert (first.start, first.num_tokens, first.token_offset) == (0, 7, 13)
    assert (first.byte_offset, first.num_bytes) == (39, 21)
    assert (second.source, second.start, second.num_tokens) == ("2.txt", 7, 1)
    assert (second.token_offset, second.byte_offset, second.num_bytes) == (0, 0, 3)


@pytest.mark.parametrize("row", [-1, 5])
def test_a_sample_that_is_not_there_is_refused(artifact: Path, row: int) -> None:
    split = PackedSplit.open(artifact, "held_out")
    with pytest.raises(IndexError, match="samples are 0 to 4"):
        split.batch([0, row])
    with pytest.raises(IndexError):
        split.trace(row)


def test_token_bytes_come_from_the_artifact(artifact: Path) -> None:
    assert token_bytes(artifact).tolist() == [3] * 500


def test_damage_is_named(artifact: Path) -> None:
    shard = artifact / "train" / "tokens-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match="cannot be opened") as caught:
        PackedSplit.open(artifact, "train")
    assert caught.value.code == "artifact-altered"
    shard.unlink()
    with pytest.raises(ArtifactError):
        PackedSplit.open(artifact, "train")
    PackedSplit.open(artifact, "held_out")


def test_other_folders_and_newer_datasets_are_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a dataset"):
        PackedSplit.open(tmp_path / "none", "train")
    index = json.loads((artifact / "index.json").read_text())
    (artifact / "index.json").write_text(json.dumps(index | {"schema_version": 99}))
    with pytest.raises(ArtifactError) as caught:
        PackedSplit.open(artifact, "train")
    assert caught.value.code == "artifact-newer"


def test_reading_needs_neither_ray_nor_torch_nor_arrow() -> None:
    code = (
        "import sys, raylm.data.shards, raylm.data.order;"
        "print(sorted({'ray', 'torch', 'pyarrow', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
