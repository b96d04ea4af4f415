"""Faults against a training on a real cluster, over and over, and the table of what they cost.

    python -m tests.campaign run --out FILE.json [--seed N] [--cases fp32-2,bf16-3] [--rounds N]
    python -m tests.campaign table FILE.json ... [--write docs/training.md] [--json FILE]

`run` trains once undisturbed in each case (precision, ZeRO stage) and once while it is hit by
every fault in turn, at steps drawn from the seed, on one Ray cluster of this machine. After each
fault it waits until the run has gone a few steps beyond where it was, and compares every loss with
that of the undisturbed run; at the end the two model artifacts too. What was seen is written after
each fault, so that a campaign that is cut short keeps what it did. If a loss or a
model differs, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raylm.config.cluster import ClusterConfig
from raylm.deploy.cluster import down, up
from raylm.store import Store
from raylm.train.checkpoint import Checkpoint, complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import Sign, read_signs
from tests.marked import put_between
from tests.tiny import write_tiny
from tests.train.damage import damage

EVERY = 10
"""Steps between checkpoints."""
STEPS_PER_FAULT = 60
GAP = (12, 24)
"""Steps between what was gone over again after a fault and the next one: at least, at most."""
BEYOND = 3
"""Steps past the furthest one before a fault, until it counts as got over."""
CASES = ("fp32-2", "bf16-3", "fp32-3", "bf16-2")
LIMIT_S = 240.0
MARKS = "<!-- faults: made by `python -m tests.campaign table` -->", "<!-- /faults -->"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one fault did."""

    fault: str
    precision: str
    zero: int
    step: int
    """The furthest step before it."""
    steps_lost: int
    recover_s: float
    """Until the first step after it."""
    max_loss_difference: float
    """Over the steps that were done again and the first new ones; 0 is the same, bit for bit."""


_drivers: list[subprocess.Popen[bytes]] = []


def stop_drivers() -> None:
    """End what a campaign that failed left running."""
    for process in _drivers:
        process.terminate()
    for process in _drivers:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


class Run:
    """One training as its user sees it: a command, a folder, processes."""

    def __init__(self, store: Path, config: Path, case: str, num_steps: int) -> None:
        self.store, self._config = store, config
        self.precision, self.zero = case.split("-")[0], int(case.split("-")[1])
        self._options = [
            f"train.precision={self.precision}", f"train.zero={self.zero}",
            f"train.steps={num_steps}", f"train.checkpoint.every_steps={EVERY}",
            "train.hang_s=8", f"name={case}",
        ]  # fmt: skip
        self.log = store / f"{case}.log"
        self.num_steps = num_steps
        self._name = case

    def start(self, *, force: bool) -> None:
        sets = [word for option in self._options for word in ("--set", option)]
        self._driver = subprocess.Popen(  # ended by `stop_drivers` if a step fails
            [sys.executable, "-m", "raylm", "train", "-c", str(self._config), *sets,
             *(["--force", "train"] if force else [])],
            env={**os.environ, "RAYLM_STORE": str(self.store)},
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("a"),
        )  # fmt: skip

        _drivers.append(self._driver)

    @property
    def work(self) -> Path:
        found = list(self.store.glob(f"runs/{self._name}-*/train-*"))
        return found[0] if found else self.store / "none"

    @property
    def is_over(self) -> bool:
        return self._driver.poll() is not None

    def end(self) -> int:
        return self._driver.wait(LIMIT_S)

    def kill_driver(self) -> None:
        self._driver.kill()
        self._driver.wait()

    def mark(self) -> None:
        """The fault has hit: note when, and how far the run had come."""
        self.hit_s, self.furthest = time.time(), self.last_step()

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
        return {a.digest for a in found if a.manifest.name == self._name}

    def wait(self, holds: Callable[[], bool], what: str, *, pause_s: float = 0.02) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            tail = self.said()[-2000:]
            assert not self.is_over, f"the command ended before {what}:\n{tail}"
            assert time.monotonic() < deadline, f"{LIMIT_S:.0f} s without {what}:\n{tail}"
            time.sleep(pause_s)


# Faults: each marks when it hit ------------------------------------------------------------


def _kill(run: Run, ranks: Sequence[Sign]) -> None:
    for sign in ranks:
        os.kill(sign.pid, signal.SIGKILL)
    run.mark()


def one_rank(run: Run, draw: random.Random) -> None:
    _kill(run, [draw.choice(run.ranks())])


def all_ranks(run: Run, draw: random.Random) -> None:
    _kill(run, run.ranks())


def driver(run: Run, draw: random.Random) -> None:
    run.kill_driver()
    run.mark()
    run.start(force=True)


def stopped(run: Run, draw: random.Random) -> None:
    sign = draw.choice(run.ranks())
    os.kill(sign.pid, signal.SIGSTOP)
    run.mark()
    run.wait(lambda: f"{sign.name} gave no sign of life for" in run.said(), "the name of the rank")


def in_a_save(run: Run, draw: random.Random) -> None:
    run.wait(lambda: bool(run.drafts()), "a save", pause_s=0.001)
    time.sleep(draw.random() * 0.05)
    _kill(run, [draw.choice(run.ranks())])


def damaged(how: str) -> Callable[[Run, random.Random], None]:
    """The newest checkpoint is damaged while nobody looks, and all ranks are lost."""

    def fault(run: Run, draw: random.Random) -> None:
        ranks = run.ranks()
        for sign in ranks:
            os.kill(sign.pid, signal.SIGSTOP)
        name = run.checkpoints()[0].path.name
        before = run.said().count(f"{name} is passed over")
        damage(run.checkpoints()[0].path, how, draw)
        _kill(run, ranks)
        run.wait(lambda: run.said().count(f"{name} is passed over") > before, "what was damaged")

    return fault


def disk_full(run: Run, draw: random.Random) -> None:
    """The command ends by itself; the clock starts when there is room again."""
    ballast = run.work / "checkpoints" / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\1" * 65536)
    assert run.end() == 3, run.said()[-2000:]
    assert "error[disk-full]: no space left on the disk of" in run.said()
    ballast.unlink()
    run.mark()
    run.start(force=True)


FAULTS: dict[str, Callable[[Run, random.Random], None]] = {
    "kill -9 of one rank": one_rank,
    "kill -9 of all ranks": all_ranks,
    "kill -9 of the driver": driver,
    "one rank frozen (SIGSTOP)": stopped,
    "kill -9 of a rank during a save": in_a_save,
    "newest checkpoint: a bit flipped": damaged("flipped"),
    "newest checkpoint: a shard truncated": damaged("truncated"),
    "newest checkpoint: a shard missing": damaged("missing"),
    "disk full during a save": disk_full,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    rounds: int
    seed: int
    deadline_s: float
    """By the monotonic clock: no fault is begun after it."""


# One case ---------------------------------------------------------------------------------


def campaign(
    store: Path, config: Path, case: str, plan: Plan, note: Callable[[Seen], None]
) -> bool:
    """All faults in one run, or as many as there is time for; whether the model is that of the
    undisturbed run."""
    faults = [name for name in FAULTS if name != "disk full during a save" or can_mount()]
    faults *= plan.rounds
    draw = random.Random(f"{plan.seed}-{case}")
    draw.shuffle(faults)
    run = Run(store, config, case, STEPS_PER_FAULT * (len(faults) + 1))
    run.start(force=False)
    assert run.end() == 0, run.said()
    expected, models = run.losses(), run.models()
    assert len(expected) == run.num_steps
    small = run.work / "checkpoints"
    small.mkdir(exist_ok=True)
    if can_mount():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)], check=True)
    (run.work / METRICS).unlink()
    run.start(force=True)
    for fault in faults:
        if time.monotonic() > plan.deadline_s:
            break
        floor = max(run.last_step(), 2 * EVERY)
        at = floor + draw.randint(*GAP)
        run.wait(lambda at=at: run.last_step() >= at and len(run.ranks()) == 2, f"step {at}")
        seen = _meet(run, fault, draw, expected)
        print(f"{case}: {json.dumps(asdict(seen))}", file=sys.stderr, flush=True)
        note(seen)
    assert run.end() == 0, run.said()[-2000:]
    return run.losses() == expected and run.models() == models


def _meet(run: Run, fault: str, draw: random.Random, expected: dict[int, float]) -> Seen:
    old = {sign.pid for sign in run.ranks()}
    FAULTS[fault](run, draw)
    run.wait(lambda: bool(_again(run, old)), "the first step after it")
    recover_s = time.time() - run.hit_s
    began = min(_again(run, old)) - 1
    run.wait(lambda: run.last_step() >= run.furthest + BEYOND, "new steps")
    found = run.losses()
    return Seen(
        fault,
        run.precision,
        run.zero,
        run.furthest,
        run.furthest - began,
        round(recover_s, 1),
        max(abs(found[step] - expected[step]) for step in found),
    )


def _again(run: Run, old: set[int]) -> dict[int, float]:
    """Losses of the steps that were done by new ranks."""
    ranks = run.ranks()
    if not ranks or any(sign.pid in old for sign in ranks):
        return {}
    return run.losses(since=min(sign.created for sign in ranks))


def can_mount() -> bool:
    """Whether a small file system can be mounted here."""
    return os.environ.get("RAYLM_CAMPAIGN_MOUNTS") == "1"


# Table ------------------------------------------------------------------------------------


def table(seen: Sequence[Seen]) -> str:
    """Markdown: one line for each fault."""
    lines = [
        "| fault | repetitions | steps lost, median (most) | seconds to recover, median (most) "
        "| largest loss difference |",
        "|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        of = [s for s in seen if s.fault == fault]
        if of:
            lost, took = [s.steps_lost for s in of], [s.recover_s for s in of]
            lines.append(
                f"| {fault} | {len(of)} | {statistics.median(lost):g} ({max(lost)}) "
                f"| {statistics.median(took):.0f} ({max(took):.0f}) "
                f"| {max(s.max_loss_difference for s in of):g} |"
            )
    cases = sorted({(s.precision, s.zero) for s in seen})
    named = ", ".join(f"{precision} with ZeRO {zero}" for precision, zero in cases)
    lines.append("")
    lines.append(
        f"Two workers on one machine, a checkpoint every {EVERY} steps; {named}. A difference of "
        "0 is the same loss bit for bit."
    )
    return "\n".join(lines)


def read(files: Sequence[Path]) -> list[Seen]:
    """What campaigns saw."""
    return [Seen(**entry) for file in files for entry in json.loads(file.read_text())]


# Command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--seed", type=int, default=0)
    runs.add_argument("--rounds", type=int, default=1)
    runs.add_argument("--cases", default=",".join(CASES))
    runs.add_argument("--limit-s", type=float, default=1e9, help="begin no fault after it")
    tables = commands.add_parser("table")
    tables.add_argument("files", type=Path, nargs="+")
    tables.add_argument("--write", type=Path)
    tables.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options)
    seen = read(options.files)
    if options.write:
        put_between(options.write, MARKS, table(seen))
    else:
        print(table(seen))
    if options.json:
        lines = ",\n".join(json.dumps(asdict(s)) for s in seen)
        options.json.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return 0


def _run(options: argparse.Namespace) -> int:
    if not can_mount() and can_mount_here():
        # In a mount name space of its own: what is mounted there is gone with it.
        command = ["unshare", "-rm", sys.executable, "-m", "tests.campaign", "run"]
        for name in ("out", "seed", "rounds", "cases", "limit_s"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        return _in_the_foreground(command, {**os.environ, "RAYLM_CAMPAIGN_MOUNTS": "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = Plan(options.rounds, options.seed, time.monotonic() + options.limit_s)
    seen: list[Seen] = []
    same: list[bool] = []

    def note(one: Seen) -> None:
        seen.append(one)
        options.out.write_text(json.dumps([asdict(s) for s in seen], indent=1) + "\n")

    store = Path(tempfile.mkdtemp(prefix="raylm-campaign-"))
    config = write_tiny(store / "raylm.yaml")
    try:
        up(Store(store), ClusterConfig())
        for case in options.cases.split(","):
            if time.monotonic() < plan.deadline_s:
                same.append(campaign(store, config, case, plan, note))
    finally:
        try:
            stop_drivers()
        finally:
            down(Store(store), drain_s=0)
    shutil.rmtree(store, ignore_errors=True)
    return 0 if all(same) and not any(s.max_loss_difference for s in seen) else 1


def _in_the_foreground(command: Sequence[str], env: dict[str, str]) -> int:
    """Run a command that hears of the signals that this process gets, and cleans up after them."""
    child = subprocess.Popen(command, env=env)
    # Ctrl-C reaches both, being of one group; SIGTERM is passed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def can_mount_here() -> bool:
    """Whether this user may mount a file system in a name space."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
