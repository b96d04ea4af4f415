"""`raylm run` on several nodes, watched through its files while nodes are lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.local import Nodes
from raylm.deploy.environment import base_env
from raylm.train.checkpoint import Checkpoint, complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.orders import Order, read_order
from raylm.train.signs import Sign, read_signs
from tests.tiny import write_tiny

STEPS = 40
ELASTIC = {
    "name": "elastic",
    "train.workers": "{min: 1, max: 2}",
    "train.hang_s": "0",
    "train.threads_per_worker": "1",
    "train.checkpoint": "{every_steps: 5}",
    "train.steps": str(STEPS),
    # At the tiny recipe's own rate a loss may spike, and what differs by rounding grows.
    "train.optimizer": "{lr: 3e-3}",
}


class Elastic:
    """One run, whose ranks can be halted, so that what happens to it happens in its middle."""

    def __init__(
        self, nodes: Nodes, store: Path, *, until: str = "train", **changes: object
    ) -> None:
        """`changes` are of `train`, beside those of `ELASTIC`."""
        self.nodes, self.store = nodes, store
        config = write_tiny(store / "elastic.yaml")
        changed = {f"train.{key}": str(value) for key, value in changes.items()}
        sets = [w for k, v in (ELASTIC | changed).items() for w in ("--set", f"{k}={v}")]
        self.config_words = ["-c", str(config), *sets]
        """What names its config on raylm's command line."""
        there = ["--set", f"cluster.address={nodes.address}", "--until", until, "-o", "json"]
        words = ["run", *self.config_words, *there]
        self.process = subprocess.Popen(
            nodes.inside(0, [sys.executable, "-m", "raylm", *words]),
            env={**base_env(), **nodes.env, "RAYLM_STORE": str(store)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[tuple[float, str]] = []
        """What it told people, and when (Unix time)."""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.time(), line.rstrip()))

    @property
    def work(self) -> Path:
        """The stage's folder."""
        return next(self.store.glob("runs/*/train-*"), self.store / "none")

    @property
    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint."""
        return next(iter(complete_checkpoints(self.work / "checkpoints")), None)

    def has(self, step: int, ranks: int) -> bool:
        """Whether so many ranks have saved a checkpoint at `step` or after it."""
        found = self.newest
        return (
            found is not None and found.progress.step >= step and found.progress.world_size == ranks
        )

    def lines(self) -> list[dict[str, Any]]:
        """What was written of each step."""
        return [line for line in read_metrics(self.work / METRICS) if "loss" in line]

    def losses(self) -> dict[int, float]:
        """Of each step."""
        return {line["step"]: line["loss"] for line in self.lines()}

    def told_to_stop(self) -> bool:
        """Whether the driver waits for a last checkpoint."""
        return read_order(self.work) is Order.SAVE_AND_STOP

    def mark(self, hit_s: float | None = None) -> None:
        """Something has hit: note when, by default now (Unix time), and how far the run is."""
        self.hit_s, self.furthest = hit_s or time.time(), max(self.losses(), default=0)

    def until(self, holds: Callable[[], bool], limit_s: float = 200) -> None:
        """Wait until something is true while the run lives."""
        deadline = time.monotonic() + limit_s
        while not holds():
            assert self.process.poll() is None, self.story()
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.02)

    def story(self) -> str:
        """All that it told people."""
        return "\n".join(line for _, line in self.said)

    @contextmanager
    def halted(self) -> Iterator[list[Sign]]:
        """Halt all ranks for as long as the block lasts; those that are left then go on."""
        signs = read_signs(self.work)
        assert signs
        for sign in signs:
            os.kill(sign.pid, signal.SIGSTOP)
        try:
            yield signs
        finally:
            for sign in signs:
                with suppress(ProcessLookupError):
                    os.kill(sign.pid, signal.SIGCONT)

    def node_of(self, sign: Sign) -> int:
        """The node that a rank is on."""
        return next(n.index for n in self.nodes.nodes if sign.pid in self.nodes.pids(n.index))

    def end(self, limit_s: float = 300) -> dict[str, str]:
        """Wait for its end; the state of each stage."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.wait(limit_s)
        self._listener.join(10)
        assert self.process.returncode == 0, self.story()
        return {stage["stage"]: stage["state"] for stage in json.loads(out)["stages"]}

    def kill(self) -> None:
        """SIGKILL for the driver alone."""
        self.process.kill()
        self.process.wait(30)


def at_work(nodes: Nodes) -> dict[int, str]:
    """Actors and tasks on all nodes by their processes, which carry their names."""
    found = {}
    for node in nodes.nodes:
        for pid in nodes.pids(node.index):
            with suppress(psutil.Error):
                title = " ".join(psutil.Process(pid).cmdline()).strip()
                # Each node has two agents.
                if re.match(r"ray::(?!IDLE|\w*Agent\b)", title):
                    found[pid] = title
    return found


def drain(nodes: Nodes, node_id: str) -> None:
    """What a cloud's notice of preemption, or an operator, tells Ray."""
    words = [
        str(Path(sys.executable).with_name("ray")), "drain-node", "--address", nodes.address,
        "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "a test", "--deadline-remaining-seconds", "300",
    ]  # fmt: skip
    done = subprocess.run(
        nodes.inside(0, words), env={**base_env(), **nodes.env}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
