"""Validation beside the training, on a real cluster: the losses of the loop, and none is late."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.config import Loaded
from raylm.config.train import AsideConfig, CheckpointConfig, TrainConfig
from raylm.errors import RaylmError
from raylm.progress import Tick
from raylm.record import RunResult
from raylm.stage import Context
from raylm.store import Store
from raylm.train.aside import ASIDE
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.orders import Order, give_order
from raylm.train.train import train

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]


def test_checkpoints_looked_at_aside_have_the_loops_losses(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    changes = {
        "steps": 100_000,
        "checkpoint": CheckpointConfig(every_steps=50),
        "validate_every": 50,
        # Two workers have the test's two cores.
        "validate_aside": AsideConfig(num_cpus=0),
    }
    config: TrainConfig = loaded.config.train.model_copy(update=changes)
    told: list[Tick] = []
    work = tmp_path / "work"

    def hear(tick: Tick) -> None:
        told.append(tick)
        if any("aside" in line for line in read_metrics(work / METRICS)):
            give_order(work, Order.SAVE_AND_STOP)

    context = Context(store, "aside", 0, tmp_path, work, report=hear)
    with pytest.raises(RaylmError, match="told to stop"):
        train(loaded.config.model, config, store.list("dataset")[0], context)
    lines = [x for x in read_metrics(work / METRICS) if "held_out_loss" in x]
    loop = {x["step"]: x["held_out_loss"] for x in lines if "aside" not in x}
    aside = {x["step"]: x["held_out_loss"] for x in lines if "aside" in x}
    assert aside
    assert aside == {step: pytest.approx(loop[step], rel=1e-5) for step in aside}
    assert list((work / ASIDE).glob("step-*")) == []
    assert [tick.text for tick in told if "not validated" in tick.text] == []
