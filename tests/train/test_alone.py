"""Training in this process, without Ray: the losses of a rank, signals, checkpoints, resume."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.errors import RaylmError
from raylm.progress import Tick
from raylm.train.alone import fit_alone
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, read_metrics
from tests.train.test_worker import SMALL, dataset

pytestmark = pytest.mark.timeout(900)
STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), "chat")


def job(data: Path, work: Path, **changes: object) -> Job:
    config = TrainConfig.model_validate(
        {
            "steps": STEPS, "global_batch": 4, "micro_batch": 2, "workers": 0,
            "checkpoint": {"every_steps": 10}, "threads_per_worker": 1, **changes,
        }
    )  # fmt: skip
    work.mkdir()
    return Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, work, 0, "c", resume=True,
        result=work / "model",
    )  # fmt: skip


def losses(work: Path) -> dict[int, float]:
    return {x["step"]: x["loss"] for x in read_metrics(work / METRICS) if "loss" in x}


def silent(tick: Tick) -> None:
    return


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR")
    before = signal.getsignal(signal.SIGINT), [os.environ.get(name) for name in names]
    assert fit_alone(job(data, work), silent)
    assert (signal.getsignal(signal.SIGINT), [os.environ.get(name) for name in names]) == before
    return work


def test_the_losses_are_those_of_a_rank_and_the_model_is_written(
    undisturbed: Path, data: Path, tmp_path: Path, alone: None
) -> None:
    from raylm.train.worker import Worker

    worker = Worker(replace(job(data, tmp_path / "work"), resume=False), rank=0, world_size=1)
    worker.restore()
    rank = [worker.step().loss for _ in range(8)]
    worker.close()
    assert [losses(undisturbed)[step] for step in range(1, 9)] == rank
    assert sorted(losses(undisturbed)) == list(range(1, STEPS + 1))
    assert (undisturbed / "model" / "model.safetensors").exists()


def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_from_it_bit_for_bit(
    undisturbed: Path, data: Path, tmp_path: Path
) -> None:
    one = job(data, tmp_path / "work", checkpoint={"every_steps": 1000})
    said: list[str] = []

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while len(losses(one.work)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fit_alone(one, lambda tick: said.append(tick.text))
    thread.join()
    stopped = max(losses(one.work))
    assert 3 <= stopped < STEPS, "it was over before it was interrupted"
    assert complete_checkpoints(one.work / "checkpoints")[0].progress.step == stopped
    assert "saving a checkpoint; again ends at once" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fit_alone(one, silent)
    assert losses(one.work) == losses(undisturbed)


def test_what_fails_is_named_in_one_line(data: Path, tmp_path: Path) -> None:
    broken = replace(job(data, tmp_path / "work"), dataset=tmp_path / "nothing")
    with pytest.raises(RaylmError):
        fit_alone(broken, silent)
