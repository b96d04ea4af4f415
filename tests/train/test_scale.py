"""One worker, without Ray: optimizers, precisions, offload, compilation under ZeRO 0 to 3."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.train.loop import Job
from tests.train.test_worker import SMALL, dataset

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]
STEPS = 5
MUON = {"optimizer": {"name": "muon", "lr": 0.01, "muon_lr": 0.02}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), "chat")


def make(data: Path, work: Path, *, resume: bool = False, **changes: Any) -> Any:
    from raylm.train.worker import Worker

    values = {
        "steps": STEPS, "global_batch": 4, "micro_batch": 2, "workers": 1, "zero": 2,
        "optimizer": {"lr": 0.01}, "schedule": {"kind": "constant", "warmup": 0},
    }  # fmt: skip
    config = TrainConfig.model_validate(values | changes)
    work.mkdir(exist_ok=True)
    job = Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, work, 0, "c", resume=resume,
        result=work / "model",
    )  # fmt: skip
    worker = Worker(job, rank=0, world_size=1)
    worker.restore()
    return worker


def losses(worker: Any, num_steps: int = STEPS) -> list[float]:
    found = [worker.step().loss for _ in range(num_steps)]
    worker.close()
    return found


@pytest.fixture(scope="module")
def adamw(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(make(data, tmp_path_factory.mktemp("adamw")))


@pytest.fixture(scope="module")
def muon(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(make(data, tmp_path_factory.mktemp("muon"), **MUON))


def test_muon_learns_otherwise_than_adamw(adamw: list[float], muon: list[float]) -> None:
    assert muon[0] == adamw[0]
    assert muon[-1] < muon[0] - 0.3
    assert abs(muon[-1] - adamw[-1]) > 1e-3


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_muon_gives_the_losses_of_stage_2_under_every_stage(
    data: Path, muon: list[float], tmp_path: Path, zero: int
) -> None:
    np.testing.assert_allclose(losses(make(data, tmp_path, zero=zero, **MUON)), muon, rtol=2e-5)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_muon_goes_on_from_a_checkpoint_bit_for_bit(data: Path, tmp_path: Path, zero: int) -> None:
    first = make(data, tmp_path, zero=zero, **MUON)
    for _ in range(2):
        first.step()
    first.save()
    expected = losses(first, 3)
    second = make(data, tmp_path, resume=True, zero=zero, **MUON)
    assert second.done == 2
    assert losses(second, 3) == expected


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, MUON], ids=["adamw", "muon"])
def test_a_state_that_is_cut_anew_goes_on_with_every_groups_own_settings(
    data: Path, tmp_path: Path, zero: int, options: dict[str, Any]
) -> None:
    from raylm.train.reshard import load_resharded

    first = make(data, tmp_path, zero=zero, **options)
    for _ in range(3):
        first.step()
    first.save()
    expected = losses(first, 2)
    second = make(data, tmp_path, zero=zero, **options)
    decays = [group["weight_decay"] for group in second._engine.optimizer.param_groups]
    assert decays[:2] == [0.1, 0.0]
    (state,) = (tmp_path / "checkpoints").glob("step-*/state")
    load_resharded(second._engine, state, tmp_path / "cut", rank=0, barrier=lambda: None)
    assert [g["weight_decay"] for g in second._engine.optimizer.param_groups] == decays
    second.done = 3
    assert losses(second, 2) == expected
    counts = {float(s["step"]) for s in second._engine.optimizer.state.values()}
    assert counts == {5.0}


@pytest.mark.parametrize(
    ("zero", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")]
)
def test_offloading_does_not_change_the_losses(
    data: Path, adamw: list[float], tmp_path: Path, zero: int, offload: str
) -> None:
    worker = make(data, tmp_path, zero=zero, offload=offload)
    np.testing.assert_allclose(losses(worker), adamw, rtol=2e-5)


@pytest.mark.parametrize(("zero", "offload"), [(2, "optimizer"), (3, "all")])
def test_a_run_goes_on_where_its_state_lies_elsewhere(
    data: Path, tmp_path: Path, zero: int, offload: str
) -> None:
    first = make(data, tmp_path, zero=zero)
    first.step()
    first.save()
    expected = losses(first, 2)
    moved = make(data, tmp_path, resume=True, zero=zero, offload=offload)
    assert moved.done == 1
    np.testing.assert_allclose(losses(moved, 2), expected, rtol=1e-6)


def test_bf16_without_zero_begins_like_bf16_with_it(data: Path, tmp_path: Path) -> None:
    found = [
        losses(make(data, tmp_path / f"zero{zero}", zero=zero, precision="bf16")) for zero in (0, 2)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3)


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """fp16 on a CPU, which torch computes slowly and DeepSpeed refuses where units lack."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    monkeypatch.setattr("raylm.config.train._conflicts", lambda config: iter(()))
    return {"precision": "fp16"}


def weights(worker: Any) -> list[torch.Tensor]:
    """Copies of them; under ZeRO 3 of what this rank holds."""
    parameters = worker._engine.module.parameters()
    return [getattr(p, "ds_tensor", p).detach().clone() for p in parameters]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_overflow_that_the_scaler_handles_counts_as_a_step_and_changes_no_weight(
    data: Path, adamw: list[float], fp16: dict[str, Any], tmp_path: Path, zero: int
) -> None:
    worker = make(data, tmp_path, zero=zero, **fp16)
    optimizer = worker._engine.optimizer
    optimizer.loss_scaler.cur_scale = 2.0**30
    before = weights(worker)
    assert sum(weight.numel() for weight in before) > 10_000
    figures = worker.step()
    assert figures.overflowed
    assert (figures.loss_scale, figures.grad_norm, worker.done) == (2.0**29, None, 1)
    assert figures.loss == pytest.approx(adamw[0], rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(worker), strict=True))
    assert worker.judge(figures)
    optimizer.loss_scaler.cur_scale = 2.0**8
    more = [worker.step() for _ in range(3)]
    assert [f.overflowed for f in more] == [False] * 3
    assert all(worker.judge(f) for f in more)
    assert more[-1].loss < figures.loss - 0.1
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(worker), strict=True))
    worker.save()
    resumed = make(data, tmp_path, resume=True, zero=zero, **fp16)
    assert resumed._engine.optimizer.loss_scale == 2.0**8
    assert losses(resumed, 1) == losses(worker, 1)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_overflow_at_the_lowest_scale_is_the_guards(
    data: Path, fp16: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int
) -> None:
    monkeypatch.setattr("raylm.train.worker.LEAST_SCALE", 2**29)
    worker = make(data, tmp_path, zero=zero, **fp16)
    worker._engine.optimizer.loss_scaler.cur_scale = 2.0**30
    figures = worker.step()
    worker.clock(1.0, figures)
    assert not figures.overflowed
    assert figures.grad_norm == float("inf")
    assert not worker.judge(figures)
    worker.close()


@pytest.mark.faults
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("changes", [{"zero": 0}, {"zero": 2, "activation_checkpointing": True}])
def test_compiled_layers_give_the_same_losses(
    data: Path, adamw: list[float], tmp_path: Path, changes: dict[str, Any]
) -> None:
    worker = make(data, tmp_path, compile=True, **changes)
    np.testing.assert_allclose(losses(worker), adamw, rtol=1e-4)


def test_compiling_without_a_compiler_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raylm.errors import HostError

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(HostError) as caught:
        make(data, tmp_path, compile=True)
    assert caught.value.code == "no-compiler"
