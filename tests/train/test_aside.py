import json
from pathlib import Path
from typing import Any

import pytest

from raylm.config.load import load_config
from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.train.aside import ASIDE, looked_at, take_results, without_share
from raylm.train.held_out import HeldOut


def config(workers: Any, num_cpus: float = 1.0) -> TrainConfig:
    return TrainConfig(workers=workers, global_batch=64, validate_aside={"num_cpus": num_cpus})


def test_the_share_is_of_the_largest_node() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert without_share(nodes, config(2)) == [{"CPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert without_share(nodes, config(4, num_cpus=0)) == nodes
    assert without_share(nodes, TrainConfig(workers=2)) == nodes
    assert nodes[1]["CPU"] == 4.0


@pytest.mark.parametrize(
    ("workers", "fits"),
    [(1, True), (2, False), ({"min": 1, "max": 2}, True), ({"min": 2, "max": 2}, False)],
)
def test_what_could_never_be_placed_is_refused_before_workers_start(
    workers: Any, fits: bool
) -> None:
    nodes = [{"CPU": 2.0}]
    if fits:
        assert without_share(nodes, config(workers)) == [{"CPU": 1.0}]
        return
    with pytest.raises(HostError) as caught:
        without_share(nodes, config(workers))
    assert caught.value.code == "cluster-too-small"
    assert "validate_aside.num_cpus" in (caught.value.hint or "")


def test_a_share_that_no_node_has_is_refused() -> None:
    with pytest.raises(HostError):
        without_share([{"CPU": 8.0}], config(1, num_cpus=9))


def test_each_result_is_taken_once(tmp_path: Path) -> None:
    assert list(take_results(tmp_path)) == []
    folder = tmp_path / ASIDE
    (folder / "step-00000020").mkdir(parents=True)
    for step in (20, 10):
        found = {"step": step, "held_out_loss": 2.5, "seconds": 1.0}
        (folder / f"{step:08d}.json").write_text(json.dumps(found))
    assert list(take_results(tmp_path)) == [HeldOut(10, 2.5, 1.0), HeldOut(20, 2.5, 1.0)]
    assert list(take_results(tmp_path)) == []


def test_the_best_checkpoints_may_be_known_by_a_loss_that_comes_later() -> None:
    sets = ["train.checkpoint.keep_best=1", "train.validate_aside.num_cpus=0"]
    assert load_config(None, sets).config.train.checkpoint.keep_best == 1


def test_what_is_being_looked_at_is_known_by_its_folder(tmp_path: Path) -> None:
    assert looked_at(tmp_path) == set()
    (tmp_path / ASIDE / "step-00000020").mkdir(parents=True)
    (tmp_path / ASIDE / "00000010.json").write_text("{}")
    assert looked_at(tmp_path) == {20}
