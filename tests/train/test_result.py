"""The model that is written: the last step's, or the best checkpoint's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raylm.config.train import TrainConfig
from raylm.stage import CHECKPOINTS
from raylm.train.alone import fit_alone
from raylm.train.checkpoint import (
    Checkpoint,
    Checkpointer,
    complete_checkpoints,
    note_held_out,
)
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.result import better, result_of
from tests.train.test_alone import job, silent
from tests.train.test_checkpoint import at
from tests.train.test_worker import dataset

CHECKPOINT = {"every_steps": 4, "keep": 1, "keep_best": 1}


def made(step: int, loss: float | None) -> Checkpoint:
    return Checkpoint(Path(f"step-{step:08d}"), replace(at(step), held_out_loss=loss), ())


def test_the_lowest_loss_comes_first_and_of_equal_ones_the_later() -> None:
    found = [made(1, 2.0), made(2, None), made(3, 1.5), made(4, 1.5), made(5, 3.0)]
    assert [c.progress.step for c in better(found, 2.5)] == [4, 3, 1]
    assert better(found, 1.5) == []


def test_the_choice_says_why() -> None:
    found = [made(1, 2.0), made(2, None), made(3, 1.5)]
    chosen = result_of(found, found[2], 9, 2.5)
    assert (chosen.step, chosen.held_out_loss, chosen.last_held_out_loss) == (3, 1.5, 2.5)
    assert (chosen.num_ranked, chosen.num_unranked) == (2, 1)
    assert chosen.why == "a held-out loss of 1.5000, after the last step 9 2.5000"
    last = result_of(found, None, 9, 1.0)
    assert (last.step, last.held_out_loss) == (9, 1.0)


def test_a_loss_that_is_found_later_keeps_a_checkpoint(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, rank=0, keep=1, keep_best=1, barrier=lambda: None)

    def save(step: int, *spared: int) -> None:
        write = lambda where: (where / "weights").write_text(f"{step}") and None  # noqa: E731
        saver.save(at(step), write, spared=spared)

    save(1)
    save(2, 1)
    note_held_out(tmp_path, 1, 1.5)
    save(3)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [3, 1]
    note_held_out(tmp_path, 3, 1.0)
    note_held_out(tmp_path, 2, 0.5)  # it is gone
    assert [c.progress.held_out_loss for c in complete_checkpoints(tmp_path)] == [1.0, 1.5]
    save(4)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [4, 3]
    assert sorted(path.name for path in tmp_path.glob("held-out-*")) == ["held-out-00000003.json"]
    # What another attempt writes under the same name has not been looked at.
    shutil.rmtree(tmp_path / "step-00000004")
    (tmp_path / "step-00000003").rename(tmp_path / "old")
    saver.save(at(3), lambda where: (where / "weights").write_text("another") and None)
    assert complete_checkpoints(tmp_path)[0].progress.held_out_loss is None


def test_the_best_needs_a_checkpoint_to_be_kept() -> None:
    with pytest.raises(ValueError, match="keep_best to 1 or more"):
        TrainConfig.model_validate({"result": "best"})
    aside = {"result": "best", "checkpoint": {"keep_best": 1}, "validate_aside": {"num_cpus": 0}}
    assert TrainConfig.model_validate(aside).result == "best"


def test_what_is_asked_is_in_the_key_and_what_is_not_is_not() -> None:
    last, best = (
        TrainConfig(),
        TrainConfig.model_validate({"result": "best", "checkpoint": CHECKPOINT}),
    )
    assert "result" not in last.key()
    assert "checkpoint" not in last.key()
    assert best.key()["result"] == "best"
    other = TrainConfig.model_validate(
        {"result": "best", "checkpoint": CHECKPOINT | {"every_steps": 5}}
    )
    assert best.key() != other.key()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("zero", [0, 3])
def test_the_written_model_is_the_checkpoint_with_the_lowest_loss(
    zero: int, tmp_path: Path
) -> None:
    one = job(
        dataset(tmp_path, "chat"), tmp_path / "work", result="best", checkpoint=CHECKPOINT,
        # So fast that it gets worse again.
        steps=8, zero=zero, optimizer={"lr": 0.27}, schedule={"kind": "constant", "warmup": 0.99},
        guard={"spike_sigma": 0},
    )  # fmt: skip
    assert fit_alone(one, silent)
    lines = list(read_metrics(one.work / METRICS))
    looks = {x["step"]: x["held_out_loss"] for x in lines if "held_out_loss" in x}
    assert sorted(looks) == [4, 8]
    best = min(looks, key=lambda step: looks[step])
    assert best == 4, looks
    (result,) = (x["result"] for x in lines if "result" in x)
    assert (result["step"], result["held_out_loss"]) == (best, looks[best])
    assert result["last_held_out_loss"] == looks[8]
    written = load_file(one.result / "model.safetensors")
    from raylm.train.held_out import _weights

    (checkpoint,) = (
        c for c in complete_checkpoints(one.work / CHECKPOINTS) if c.progress.step == best
    )
    saved = _weights(one, checkpoint)
    assert all(
        torch.equal(tensor, saved[name].to(tensor.dtype)) for name, tensor in written.items()
    )
