"""What the model at the start said: computed once, kept, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.train.loop import Job
from raylm.train.reference import reference_file, rows_of_run
from raylm.train.source import Source, SpecialTokens
from tests.train.records import write_dataset
from tests.train.series import SMALL

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]


def config(**changes: Any) -> TrainConfig:
    values = {
        "objective": "dpo", "steps": 4, "global_batch": 1, "micro_batch": 1, "workers": 1,
        "optimizer": {"lr": 1e-2}, "dpo_beta": 0.5, "guard": {"max_rollbacks": 1},
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "visited"),
    [({}, 5), ({"steps": 2, "global_batch": 3}, 8), ({"steps": 100}, 8),
     ({"steps": None, "time_s": 5.0}, 8), ({"steps": 1, "guard": {"max_rollbacks": 0}}, 1)],
)  # fmt: skip
def test_rows_that_a_run_can_visit(changes: dict[str, Any], visited: int, tmp_path: Path) -> None:
    split = PackedSplit.open(write_dataset(tmp_path / "data", "preferences"), "train")
    source = Source(split, 0, "dpo", SpecialTokens())
    rows = rows_of_run(source, config(**changes))
    assert len(rows) == len(set(rows.tolist())) == visited
    assert source.rows(np.arange(visited)).tolist() != list(range(visited)) or visited == 1
    assert set(source.rows(np.arange(min(visited, 4))).tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("zero", [2, 3])
def test_a_resumed_run_prefers_against_the_same_start(zero: int, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "preferences")

    def losses(work: Path, *, resume: bool, steps: int) -> list[float]:
        from raylm.train.worker import Worker

        work.mkdir(exist_ok=True)
        job = Job(
            ModelConfig(preset="llama-1m", **SMALL), config(zero=zero), data, work, 0, "c",
            resume=resume, result=work / "model", objective="dpo",
        )  # fmt: skip
        worker = Worker(job, rank=0, world_size=1)
        worker.restore()
        found = []
        for _ in range(steps):
            found.append(worker.step().loss)
            if worker.done == 2:
                worker.save()
        worker.close()
        return found

    whole = losses(tmp_path / "whole", resume=False, steps=4)
    assert whole[0] == pytest.approx(np.log(2), rel=1e-6)
    assert whole[2] != pytest.approx(np.log(2), rel=1e-3)
    table = np.load(reference_file(tmp_path / "whole", "train"))
    assert table.shape[0] == 8
    assert np.isfinite(table).all(1).sum() == 5
    assert (table[np.isfinite(table).all(1)].min(1) < -1).all()
    held_out = np.load(reference_file(tmp_path / "whole", "held_out"))
    assert np.isfinite(held_out).all()

    cut = tmp_path / "cut"
    assert losses(cut, resume=False, steps=2) == whole[:2]
    assert losses(cut, resume=True, steps=2) == whole[2:]
    # Lost, it is computed again, by the weights before the checkpoint's.
    reference_file(cut, "train").unlink()
    assert losses(cut, resume=True, steps=2) == pytest.approx(whole[2:], rel=1e-6)
    # Kept, it is what counts.
    np.save(reference_file(cut, "train"), np.where(np.arange(table.shape[1]) % 2, table, 0.0))
    assert losses(cut, resume=True, steps=2) != pytest.approx(whole[2:], rel=1e-3)
