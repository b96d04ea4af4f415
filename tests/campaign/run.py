"""Run: one training as its user sees it on one machine: a command, a folder, processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raylm.config.cluster import ClusterConfig
from raylm.deploy.cluster import down, up
from raylm.store import Store
from raylm.train.checkpoint import Checkpoint, complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import Sign, read_signs
from tests.campaign.case import LIMIT_S, Case
from tests.campaign.seen import EVERY
from tests.tiny import write_tiny

RAYLM = ("-m", "raylm")
_drivers: list[subprocess.Popen[bytes]] = []


@contextmanager
def cluster(store: Path) -> Iterator[Path]:
    """A Ray cluster of this machine, and the config of what is trained on it."""
    config = write_tiny(store / "raylm.yaml")
    try:
        up(Store(store), ClusterConfig())
        yield config
    finally:
        try:
            _stop_drivers()
        finally:
            down(Store(store), drain_s=0)


def _stop_drivers() -> None:
    """End what a campaign that failed left running."""
    for process in _drivers:
        process.terminate()
    for process in _drivers:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


class Run:
    """One training."""

    def __init__(
        self, config: Path, case: Case, num_steps: int, command: Sequence[str] = RAYLM
    ) -> None:
        """`command` is what Python runs."""
        self.store, self._config, self._command = config.parent, config, command
        self.case, self.num_steps = case, num_steps
        self._options = [
            f"train.precision={case.precision}", f"train.zero={case.zero}",
            f"train.steps={num_steps}", f"train.checkpoint.every_steps={EVERY}",
            "train.hang_s=8", "train.guard.max_rollbacks=20", f"name={case}",
        ]  # fmt: skip
        self.log = self.store / f"{case}.log"

    def start(self) -> None:
        """Begin or go on; forced, or what another case has trained would be taken."""
        sets = [word for option in self._options for word in ("--set", option)]
        self._driver = subprocess.Popen(  # ended by `cluster` if a step fails
            [sys.executable, *self._command, "train", "-c", str(self._config), *sets,
             "--force", "train"],
            env={**os.environ, "RAYLM_STORE": str(self.store)},
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("a"),
        )  # fmt: skip
        _drivers.append(self._driver)

    def begin_anew(self) -> None:
        """Train again, from the first step on, what was trained to its end."""
        (self.work / METRICS).unlink()
        self.start()

    @property
    def work(self) -> Path:
        found = list(self.store.glob(f"runs/{self.case}-*/train-*"))
        return found[0] if found else self.store / "none"

    @property
    def is_over(self) -> bool:
        return self._driver.poll() is not None

    def end(self) -> int:
        return self._driver.wait(LIMIT_S)

    def kill_driver(self) -> None:
        self._driver.kill()
        self._driver.wait()

    def terminate_driver(self) -> None:
        self._driver.terminate()

    def mark(self, hit_s: float | None = None) -> None:
        """The fault has hit: note when, by default now, and how far the run had come."""
        self.hit_s, self.furthest = hit_s or time.time(), self.last_step()

    def losses(self, since: float = 0.0) -> dict[int, float]:
        lines = read_metrics(self.work / METRICS)
        return {x["step"]: x["loss"] for x in lines if "loss" in x and x["time"] > since}

    def last_step(self) -> int:
        return max(self.losses(), default=0)

    def ranks(self) -> list[Sign]:
        return [sign for sign in read_signs(self.work) if Path(f"/proc/{sign.pid}").exists()]

    def checkpoints(self) -> list[Checkpoint]:
        return complete_checkpoints(self.work / "checkpoints")

    def drafts(self) -> list[Path]:
        return list((self.work / "checkpoints").glob(".draft-*"))

    def said(self) -> str:
        return self.log.read_text()

    def models(self) -> set[str]:
        found = Store(self.store).list("model")
        return {a.digest for a in found if a.manifest.name == str(self.case)}

    def wait(self, holds: Callable[[], bool], what: str, *, pause_s: float = 0.02) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            tail = self.said()[-2000:]
            assert not self.is_over, f"the command ended before {what}:\n{tail}"
            assert time.monotonic() < deadline, f"{LIMIT_S:.0f} s without {what}:\n{tail}"
            time.sleep(pause_s)
