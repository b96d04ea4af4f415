"""Trackers as processes: whatever becomes of them, the training is not touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raylm.errors import MissingExtra
from raylm.progress import Tick
from raylm.train.trackers.children import Trackers, check_trackers
from tests.train.trackers.runs import Run, events


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_what_was_logged_until_the_end_is_there_after_it(tmp_path: Path) -> None:
    told: list[Tick] = []
    run = Run(tmp_path)
    with Trackers(("tensorboard",), tmp_path, told.append):
        run.steps(3)
        wait_for(lambda: any((tmp_path / "tensorboard").glob("*")))
        run.steps(4)
    assert sorted(events(tmp_path / "tensorboard")["train/loss"]) == list(range(1, 8))
    assert told == []


def test_a_tracker_that_hangs_is_left_after_a_while_and_named(tmp_path: Path) -> None:
    told: list[Tick] = []
    run = Run(tmp_path)
    with Trackers(("tensorboard",), tmp_path, told.append, end_s=0.5) as trackers:
        child = trackers.pids()["tensorboard"]
        run.steps(1)
        wait_for(lambda: any((tmp_path / "tensorboard").glob("*")))
        os.kill(child, signal.SIGSTOP)
    assert not psutil.pid_exists(child)
    (tick,) = told
    assert tick.text.startswith("tensorboard is not told any more: it did not end within 0.5 s")


def test_a_tracker_that_fails_is_told_with_its_cause_while_the_training_goes_on(
    tmp_path: Path,
) -> None:
    told: list[Tick] = []
    run = Run(tmp_path)
    (tmp_path / "tensorboard").write_text("in the way")
    with Trackers(("tensorboard",), tmp_path, told.append):
        run.steps(1)
        wait_for(lambda: bool(told))
    (tick,) = told
    assert "FileExistsError" in tick.text
    assert str(tmp_path / "trackers/tensorboard.log") in tick.text


def test_trackers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from raylm.train.trackers.children import Trackers\n"
        "with Trackers(('tensorboard',), Path(sys.argv[1]), print) as trackers:\n"
        "    print(trackers.pids()['tensorboard'], flush=True); time.sleep(600)\n"
    )
    Run(tmp_path).steps(2)
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    wait_for(lambda: any((tmp_path / "tensorboard").glob("*")))
    driver.kill()
    driver.wait()
    # Its parent is gone: who adopts it may be slow to take note of its end.
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", 30)
    assert sorted(events(tmp_path / "tensorboard")["train/loss"]) == [1, 2]


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.train.trackers.children.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        check_trackers(("mlflow",))
    assert caught.value.hint == "pip install 'raylm[mlflow]'"
