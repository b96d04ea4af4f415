"""What the train stage asks before it starts workers, on datasets of every format."""

from pathlib import Path
from typing import NamedTuple

import pytest

from raylm.config.data import Format
from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.errors import HostError
from raylm.model.presets import PRESETS
from raylm.train.plan.check import check_training
from raylm.train.plan.room import Node, Room
from tests.train.records import LABELS, VOCAB, write_dataset

CONFIG = TrainConfig(global_batch=8, micro_batch=4, workers=2)
CASES: list[tuple[str, Format]] = [
    ("llama-1m", "chat"), ("t5-1m", "pairs"), ("bert-1m", "text"), ("bert-1m", "labels"),
]  # fmt: skip


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


def room(monkeypatch: pytest.MonkeyPatch, worker_bytes: int) -> None:
    found = Room((Node(2, 2 * worker_bytes),))
    monkeypatch.setattr("raylm.train.plan.check.connected_room", lambda: found)


@pytest.mark.parametrize(("preset", "format"), CASES)
def test_every_architecture_has_a_predicted_cost(
    preset: str, format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, 8 * 2**30)
    split = PackedSplit.open(write_dataset(tmp_path / "data", format), "train")
    found = check_training(ModelConfig(preset=preset), CONFIG, split, tmp_path)
    assert found is not None
    assert sum(found["memory"].values()) == found["memory_bytes"]
    count = PRESETS[preset].num_parameters(VOCAB)
    if format == "labels":
        # The head for hidden tokens: a bias a token, a square matrix and its norm; the other's: a
        # pooler and a row a class.
        count += len(LABELS) * 129 - VOCAB - 2 * 128
    assert found["checkpoint_bytes"] == 16 * count


@pytest.mark.parametrize(("preset", "format"), CASES)
def test_every_architecture_is_refused_where_it_does_not_fit(
    preset: str, format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, 10**6)
    split = PackedSplit.open(write_dataset(tmp_path / "data", format), "train")
    model = ModelConfig(preset=preset)
    with pytest.raises(HostError) as caught:
        check_training(model, CONFIG, split, tmp_path)
    assert caught.value.code == "plan-does-not-fit"
    unchecked = CONFIG.model_copy(update={"check_memory": False})
    assert check_training(model, unchecked, split, tmp_path) is not None


def test_a_training_that_the_disk_does_not_hold_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, 8 * 2**30)
    split = PackedSplit.open(write_dataset(tmp_path / "data", "text"), "train")
    model = ModelConfig(preset="llama-1m")
    monkeypatch.setattr(
        "raylm.train.plan.check.shutil.disk_usage", lambda root: DiskUsage(10**9, 0, 10**6)
    )
    with pytest.raises(HostError) as caught:
        check_training(model, CONFIG, split, tmp_path)
    assert caught.value.code == "plan-disk-too-small"
    left = tmp_path / "checkpoints" / "step-00000010" / "state"
    left.mkdir(parents=True)
    with (left / "shard.pt").open("wb") as file:
        file.truncate(200_000_000)
    assert check_training(model, CONFIG, split, tmp_path, checkpoints=left.parents[1]) is not None
    unchecked = CONFIG.model_copy(update={"check_disk": False})
    assert check_training(model, unchecked, split, tmp_path) is not None
