import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import CheckpointConfig, TrainConfig, WorkerRange
from raylm.errors import HostError
from raylm.progress import Tick, silent
from raylm.train import watch
from raylm.train.loop import Job
from raylm.train.metrics import METRICS
from raylm.train.orders import Order, read_order
from raylm.train.placement import Resources
from raylm.train.signs import RANKS, Beat, Sign, begin_attempt
from raylm.train.watch import Watch, leaving


def sign(rank: int, node: str) -> Sign:
    return Sign(rank, 10 + rank, 0.0, f"host-{node}", node, step=3)


def job(folder: Path, grace_s: float) -> Job:
    config = TrainConfig(workers=1, checkpoint=CheckpointConfig(grace_s=grace_s))
    return Job(ModelConfig(), config, folder, folder, 0, "c", resume=False, result=folder)


def has_begun(folder: Path) -> Beat:
    ranks = folder / RANKS / begin_attempt(folder)
    beat = Beat(ranks, Sign(0, os.getpid(), 0.0, "host", "node"))
    beat.step(4)
    return beat


def signal_soon(delay_s: float = 0.3) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_a_signal_is_passed_on_when_the_last_checkpoint_is_written(tmp_path: Path) -> None:
    beat = has_begun(tmp_path)
    ended = threading.Event()

    def work() -> None:
        while read_order(tmp_path) is not Order.SAVE_AND_STOP:
            time.sleep(0.01)
        time.sleep(0.5)  # it saves
        ended.set()

    ticks: list[Tick] = []
    signal_soon()
    with pytest.raises(KeyboardInterrupt):
        Watch(job(tmp_path, grace_s=30), 1, ticks.append).wait(work)
    assert ended.is_set()
    assert [tick.text for tick in ticks] == ["saving a checkpoint; again ends at once"]
    beat.close()


def test_a_signal_is_passed_on_when_the_grace_is_over(tmp_path: Path) -> None:
    beat = has_begun(tmp_path)
    stop = threading.Event()
    signal_soon()
    with pytest.raises(KeyboardInterrupt):
        Watch(job(tmp_path, grace_s=0.3), 1, silent).wait(lambda: stop.wait(60))
    assert not stop.is_set()
    stop.set()
    beat.close()


def test_a_signal_before_the_first_step_is_passed_on_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    signal_soon()
    with pytest.raises(KeyboardInterrupt):
        Watch(job(tmp_path, grace_s=600), 1, silent).wait(lambda: stop.wait(60))
    assert read_order(tmp_path) is Order.GO_ON
    stop.set()


def test_what_the_work_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Watch(job(tmp_path, grace_s=1), 1, silent).wait(lambda: 1 // 0)


def test_nodes_that_have_to_go_are_named_with_their_ranks_and_their_time() -> None:
    signs = [sign(0, "a"), sign(1, "b"), sign(2, "b")]
    assert leaving(signs, {}, 100.0) is None
    assert leaving(signs, {"c": 130.0}, 100.0) is None
    assert leaving(signs, {"b": 130.0}, 100.0) == "host-b (rank 1, 2) has to go within 30 s"
    assert leaving(signs, {"a": 0.0}, 100.0) == "host-a (rank 0) has to go"
    both = leaving([*signs, replace(signs[0], rank=3)], {"a": 90.0, "b": 0.0}, 100.0)
    assert both == "host-a, host-b (rank 0, 1, 2, 3) has to go within 0 s"


def test_a_look_that_fails_is_told_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when validation aside and the workers have no room together any more."""
    looks: list[str] = []

    def nodes(config: TrainConfig) -> list[Resources]:
        looks.append("nodes")
        raise HostError("the cluster does not hold both", code="cluster-too-small")

    monkeypatch.setattr(watch, "_LOOK_S", 0.01)
    monkeypatch.setattr(watch, "_NODES_EVERY_S", 0.02)
    monkeypatch.setattr(watch, "draining_nodes", dict)
    monkeypatch.setattr(watch, "nodes_for_workers", nodes)
    monkeypatch.setattr(watch, "end_rank", lambda sign: looks.append(f"end {sign.rank}"))
    elastic = job(tmp_path, grace_s=1)
    config = elastic.config.model_copy(update={"workers": WorkerRange(max=4), "hang_s": 2.5})
    beat = has_begun(tmp_path)
    ticks: list[Tick] = []
    with Watch(replace(elastic, config=config), 1, ticks.append) as seen:
        wait(lambda: len(looks) > 3)
        beat._stop.set()  # it falls silent
        wait(lambda: seen.cause is not None)
    assert seen.cause is not None
    assert "gave no sign of life" in seen.cause
    assert looks.count("end 0") == 1
    said = [tick.text for tick in ticks if "cannot look" in tick.text]
    assert said == [
        "cannot look at nodes, and tries again: HostError: the cluster does not hold both"
    ]
    beat.close()


def test_a_metrics_file_that_cannot_be_read_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_S", 0.01)
    (tmp_path / METRICS).write_text("no JSON\n")
    beat = has_begun(tmp_path)
    ticks: list[Tick] = []
    with Watch(job(tmp_path, grace_s=1), 1, ticks.append) as seen:
        wait(lambda: seen.step == 4)
        wait(lambda: any("JSONDecodeError" in tick.text for tick in ticks))
    beat.close()


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
