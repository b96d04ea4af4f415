"""Gradients, weights and held-out losses that are no finite numbers: none is kept or written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import Batch
from raylm.errors import TrainError
from raylm.train import loop
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.generators import generator_files
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import Beat, Sign
from raylm.train.skips import read_skips
from raylm.train.worker import StepFigures, Worker
from raylm.train.zero import state_files
from tests.train.series import SMALL
from tests.train.test_worker import dataset

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "data", "text")


def train(data: Path, work: Path, **changes: Any) -> None:
    """Train as a rank does, to the model."""
    work.mkdir()
    values = {
        "objective": "causal", "steps": STEPS, "global_batch": 4, "micro_batch": 2, "workers": 1,
        "checkpoint": {"every_steps": 2, "keep": 2}, "guard": {"max_rollbacks": 1},
    }  # fmt: skip
    config = TrainConfig(**(values | changes))
    job = loop.Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, work, 0, "c", resume=True,
        result=work / "model",
    )  # fmt: skip
    worker = Worker(job, rank=0, world_size=1)
    beat = Beat(work, Sign(0, os.getpid(), 0.0, "here", "node"))
    try:
        worker.restore()
        assert loop._train(worker, config, beat)
        worker.write_model()
    finally:
        beat.close()
        worker.close()


def check(work: Path, why: str, at: int) -> None:
    """One window was skipped, and all that was kept is finite."""
    (skip,) = read_skips(work)
    assert (skip.step, skip.window) == (at, at)
    assert why in skip.why
    lines = list(read_metrics(work / METRICS))
    told = [line for line in lines if "loss" in line]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in told)
    assert all(math.isfinite(line["held_out_loss"]) for line in lines if "held_out_loss" in line)
    found = complete_checkpoints(work / "checkpoints")
    assert [checkpoint.progress.step for checkpoint in found] == [4, 2]
    for checkpoint in found:
        for file in checkpoint.state.glob("*model_states.pt"):
            module = torch.load(file, weights_only=False)["module"]
            assert all(value.isfinite().all() for value in module.values())
    written = safetensors.torch.load_file(work / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in written.values())


@pytest.mark.parametrize("at", [1, STEPS - 1], ids=["in the middle", "last"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_gradient_that_is_no_number_under_a_finite_loss_rolls_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int, precision: str, at: int
) -> None:
    real, poisoned = Worker._nll, [False]

    def nll(worker: Worker, batch: Batch) -> torch.Tensor:
        found = real(worker, batch)
        if worker.done == at and found.requires_grad and not poisoned[0]:
            poisoned[0] = True
            found.register_hook(lambda gradient: gradient * math.nan)
        return found

    monkeypatch.setattr(Worker, "_nll", nll)
    train(data, tmp_path / "work", zero=zero, precision=precision)
    check(tmp_path / "work", "the gradient's norm is ", at)
    state = complete_checkpoints(tmp_path / "work" / "checkpoints")[0].state
    config = TrainConfig(zero=zero, precision=precision)
    assert {path.name for path in state.iterdir() if path.suffix != ".py"} == {
        *state_files(config, 1), *generator_files(1, gpu=False),
    }  # fmt: skip


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("at", [1, STEPS - 1], ids=["at a checkpoint", "at the end"])
def test_weights_that_are_no_numbers_are_not_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int, at: int
) -> None:
    real, broken = Worker.step, [False]

    def step(worker: Worker) -> StepFigures:
        figures = real(worker)
        if worker.done == at + 1 and not broken[0]:
            broken[0] = True
            weight = next(worker._engine.module.parameters())
            getattr(weight, "ds_tensor", weight).data.view(-1)[0] = -math.inf
        return figures

    monkeypatch.setattr(Worker, "step", step)
    # Saved where the weights break, and not there: the end alone has to see it.
    every = {"every_steps": 2, "keep": 2}
    train(data, tmp_path / "work", zero=zero, checkpoint=every)
    check(tmp_path / "work", "weights are no finite numbers", at)


@pytest.mark.parametrize("keep_best", [0, 1])
def test_a_held_out_loss_that_is_no_number_rolls_back_and_is_not_written_down(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_best: int
) -> None:
    real, times = Worker._nll, [0]

    def nll(worker: Worker, batch: Batch) -> torch.Tensor:
        found = real(worker, batch)
        times[0] += not found.requires_grad
        # The first look is before the first checkpoint where the best is kept, else at the end.
        return found * math.nan if not found.requires_grad and times[0] == 1 else found

    monkeypatch.setattr(Worker, "_nll", nll)
    options = {"every_steps": 2, "keep": 2, "keep_best": keep_best}
    train(data, tmp_path / "work", checkpoint=options)
    check(tmp_path / "work", "the held-out loss is nan", 1 if keep_best else STEPS - 1)


def test_a_held_out_loss_that_stays_no_number_ends_the_run_without_a_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker._nll

    def nll(worker: Worker, batch: Batch) -> torch.Tensor:
        found = real(worker, batch)
        return found if found.requires_grad else found * math.nan

    monkeypatch.setattr(Worker, "_nll", nll)
    with pytest.raises(TrainError, match="the held-out loss is nan after 1 skipped") as caught:
        train(data, tmp_path / "work")
    assert caught.value.code == "train-diverged"
    assert not (tmp_path / "work" / "model").exists()


def test_a_model_with_such_weights_is_not_written(data: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=1, global_batch=4, micro_batch=4, workers=1, zero=0)
    job = loop.Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, tmp_path, 0, "c", resume=True,
        result=tmp_path / "model",
    )  # fmt: skip
    worker = Worker(job, rank=0, world_size=1)
    worker.restore()
    next(worker._engine.module.parameters()).data[0] = math.nan
    with pytest.raises(TrainError, match="no finite numbers, and is not written"):
        worker.write_model()
    assert not (tmp_path / "model").exists()
    worker.close()
