"""Workers that die, freeze or meet bad data: the run goes on, and the losses say that it does."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.artifact import Artifact
from raylm.config import Loaded
from raylm.config.train import CheckpointConfig, GuardConfig, TrainConfig, WorkerRange
from raylm.data.prepare import prepare
from raylm.progress import Tick
from raylm.record import RunResult
from raylm.stage import Context
from raylm.store import Store
from raylm.train import attempts
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.orders import Order, give_order
from raylm.train.signs import read_signs
from raylm.train.skips import read_skips
from raylm.train.train import train
from tests.integration.stuck import stuck_loop
from tests.train.series import WORLD_SIZE_TOLERANCE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
STEPS = 60


@dataclass
class Training:
    """A training in a thread of its own, as it is seen from outside."""

    loaded: Loaded
    store: Store
    dataset: Artifact
    work: Path
    changes: dict[str, Any]
    key: str = ""
    said: list[str] = field(default_factory=list)
    failure: BaseException | None = None
    model: Artifact | None = None

    def start(self) -> Training:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        changes = {"steps": STEPS, "checkpoint": CheckpointConfig(every_steps=5), **self.changes}
        config = TrainConfig.model_validate(self.loaded.config.train.model_copy(update=changes))
        context = Context(self.store, "f", 0, self.work, self.work, report=self._hear, key=self.key)
        try:
            self.model = train(self.loaded.config.model, config, self.dataset, context)
        except BaseException as error:
            self.failure = error

    def _hear(self, tick: Tick) -> None:
        self.said.append(tick.text)

    def until(self, holds: Callable[[], bool], limit_s: float = 240) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert self._thread.is_alive() and self.failure is None, self.failure or self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def end(self) -> dict[int, float]:
        self._thread.join(400)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure
        return losses(self.work)

    def has_checkpoint(self) -> bool:
        return self.newest_checkpoint() > 0

    def newest_checkpoint(self) -> int:
        """Its step; 0 where there is none."""
        found = complete_checkpoints(self.work / "checkpoints")
        return found[0].progress.step if found else 0


def losses(work: Path) -> dict[int, float]:
    return {x["step"]: x["loss"] for x in read_metrics(work / METRICS) if "loss" in x}


@pytest.fixture
def training(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> Callable[..., Training]:
    def make(work: str = "work", dataset: Artifact | None = None, **changes: Any) -> Training:
        (tmp_path / work).mkdir(exist_ok=True)
        first = dataset or store.list("dataset")[0]
        return Training(loaded, store, first, tmp_path / work, changes).start()

    return make


@pytest.fixture(scope="module")
def undisturbed(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    work = tmp_path_factory.mktemp("undisturbed")
    return Training(loaded, store, store.list("dataset")[0], work, {}).start().end()


def test_killed_and_frozen_ranks_are_replaced_and_the_losses_are_the_same_bit_for_bit(
    training: Callable[..., Training], undisturbed: dict[int, float]
) -> None:
    run = training(hang_s=5.0)
    run.until(run.has_checkpoint)
    killed = read_signs(run.work)[1]
    os.kill(killed.pid, signal.SIGKILL)
    run.until(lambda: any("starting anew from the last checkpoint" in x for x in run.said))
    before = run.newest_checkpoint()
    run.until(lambda: run.newest_checkpoint() > before)
    frozen = read_signs(run.work)[1]
    assert frozen.pid != killed.pid
    os.kill(frozen.pid, signal.SIGSTOP)
    assert run.end() == undisturbed
    assert any(f"{frozen.name} gave no sign of life for" in text for text in run.said)


def test_a_rank_that_lives_and_gets_nowhere_is_named_and_replaced(
    training: Callable[..., Training],
    undisturbed: dict[int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts, "train_loop", stuck_loop)
    run = training(hang_s=5.0)
    assert run.end() == undisturbed
    (why,) = [text for text in run.said if "no rank has moved for" in text]
    assert re.search(
        r"rank 1 \(process \d+ on .*\) is reading samples after step 7, the others wait, "
        "and was ended; starting anew from the last checkpoint",
        why,
    )
    # It went on beating: silence was not what gave it away.
    assert not any("no sign of life" in text for text in run.said)


def test_fewer_workers_go_on_where_more_were_told_to_stop(
    training: Callable[..., Training], undisturbed: dict[int, float]
) -> None:
    run = training()
    run.until(lambda: len(losses(run.work)) > 12)
    give_order(run.work, Order.SAVE_AND_STOP)
    with pytest.raises(Exception, match="told to stop"):
        run.end()
    stopped = max(losses(run.work))
    assert complete_checkpoints(run.work / "checkpoints")[0].progress.step == stopped < STEPS
    found = training(workers=WorkerRange(min=1, max=1)).end()
    assert sorted(found) == sorted(undisturbed)
    same = [step for step in undisturbed if step <= stopped]
    assert [found[s] for s in same] == [undisturbed[s] for s in same]
    np.testing.assert_allclose(
        [found[step] for step in undisturbed],
        list(undisturbed.values()),
        rtol=WORLD_SIZE_TOLERANCE["fp32"],
    )


def test_bad_text_is_skipped_and_named(
    training: Callable[..., Training], store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    random.seed(0)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(300):
        (corpus / f"good-{number}.txt").write_text(f"one two three four {number} " * 40)
    for number in range(2):
        noise = "".join(chr(random.randrange(33, 1000)) for _ in range(60))
        (corpus / f"noise-{number}.txt").write_text(noise)
    # Few words make few pairs to merge.
    tokenizer = loaded.config.data.tokenizer.model_copy(update={"vocab_size": 270})
    changes = {"paths": (str(corpus),), "pattern": "**/*", "tokenizer": tokenizer}
    config = loaded.config.data.model_copy(update=changes)
    dataset = prepare(config, Context(store, "noisy", 0, tmp_path, tmp_path / "data"))
    guard = GuardConfig(spike_sigma=8, max_rollbacks=30)
    run = training(dataset=dataset, guard=guard, steps=120)
    found = run.end()
    assert sorted(found) == list(range(1, 121))
    skips = read_skips(run.work)
    noisy = [s for s in skips if any("noise-" in d["source"] for d in s.documents)]
    assert noisy, [s.why for s in skips]
    assert run.model is not None and run.model.manifest.metrics["skipped_windows"] == len(skips)
    assert json.loads((run.work / "skipped.json").read_text())[0]["why"].startswith("the loss is ")


@pytest.mark.faults
def test_a_run_whose_disk_is_lost_goes_on_from_the_bucket_bit_for_bit(
    undisturbed: dict[int, float],
    store: Store,
    loaded: Loaded,
    url: str,
    tmp_path: Path,
) -> None:
    def on(machine: str) -> Training:
        (tmp_path / machine).mkdir()
        os.environ["HOME"] = str(tmp_path / machine)  # put back by the fixture of the bucket
        changes = {"steps": STEPS}
        run = Training(loaded, Store(url), store.list("dataset")[0], tmp_path / machine, changes)
        run.key = "key"
        return run.start()

    first = on("first")
    first.until(lambda: any("uploaded to s3://models/team" in text for text in first.said))
    give_order(first.work, Order.SAVE_AND_STOP)
    with pytest.raises(Exception, match="told to stop"):
        first.end()
    stopped = max(losses(first.work))
    assert stopped < STEPS
    shutil.rmtree(first.work)
    second = on("second")
    assert second.end() == undisturbed
    assert second.said[0] == f"step-{stopped:08d} downloaded from s3://models/team"
