"""ZeRO 0 in bf16 starts from nothing done, and goes on from what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.train.loop import Job
from tests.train.records import write_dataset
from tests.train.series import SMALL

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]


def begin(work: Path, data: Path, *, resume: bool = False) -> Any:
    from raylm.train.worker import Worker

    work.mkdir(exist_ok=True)
    config = TrainConfig(
        steps=4, global_batch=8, micro_batch=8, workers=1, zero=0, precision="bf16",
        optimizer={"lr": 0.01, "weight_decay": 0.5}, schedule={"kind": "constant", "warmup": 0},
    )  # fmt: skip
    model = ModelConfig(preset="llama-1m", **SMALL)
    job = Job(
        model, config, data, work, 0, "c", resume=resume, result=work / "model", objective="sft"
    )
    worker = Worker(job, rank=0, world_size=1)
    worker.restore()
    return worker


def test_weights_have_not_decayed_and_no_step_is_counted(tmp_path: Path) -> None:
    worker = begin(tmp_path / "work", write_dataset(tmp_path / "data", "chat"))
    optimizer = worker._engine.optimizer
    assert not optimizer.optimizer.state
    pairs = [
        pair
        for groups in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True)
        for pair in zip(*groups, strict=True)
    ]
    assert len(pairs) == 2 * 9 + 2
    assert all(torch.equal(master, weight.float()) for master, weight in pairs)
    worker.step()
    steps = {float(state["step"]) for state in optimizer.optimizer.state.values()}
    assert steps == {1.0}
    worker.close()


def test_a_resumed_run_has_the_uninterrupted_ones_losses(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "chat")
    worker = begin(tmp_path / "work", data)
    whole = [worker.step().loss for _ in range(2)]
    worker.save()
    whole += [worker.step().loss for _ in range(2)]
    worker.close()
    again = begin(tmp_path / "work", data, resume=True)
    assert [again.step().loss for _ in range(2)] == whole[2:]
    again.close()
    assert whole == sorted(whole, reverse=True)
