"""Faults of processes and disks on one machine: ranks, the driver, checkpoints.

Each hits one run of two workers in turn, at steps that are drawn. After each the run goes a few
steps beyond where it was, and every loss is compared with that of an undisturbed run; at the end
the two model artifacts too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from raylm.train.signs import Sign
from tests.campaign.case import BEYOND, STEPS_PER_FAULT, Case, Note, Plan, next_step
from tests.campaign.run import Run
from tests.campaign.seen import Seen, largest_difference
from tests.train.damage import damage

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
    run.start()


def terminated(run: Run, draw: random.Random) -> None:
    """The command saves a checkpoint within its grace, and ends by itself."""
    hit_s = time.time()
    run.terminate_driver()
    assert run.end() == 143, run.said()[-2000:]
    run.mark(hit_s)
    assert run.checkpoints()[0].progress.step == run.furthest, run.said()[-2000:]
    run.start()


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
    run.start()


FULL = "disk full during a save"
FAULTS: dict[str, Callable[[Run, random.Random], None]] = {
    "kill -9 of one rank": one_rank,
    "kill -9 of all ranks": all_ranks,
    "kill -9 of the driver": driver,
    "SIGTERM to the driver: a checkpoint, and the command again": terminated,
    "one rank frozen (SIGSTOP)": stopped,
    "kill -9 of a rank during a save": in_a_save,
    "newest checkpoint: a bit flipped": damaged("flipped"),
    "newest checkpoint: a shard truncated": damaged("truncated"),
    "newest checkpoint: a shard missing": damaged("missing"),
    FULL: disk_full,
}


def campaign(config: Path, case: Case, plan: Plan, note: Note) -> bool:
    """All faults in one run, or as many as there is time for; whether losses and model are those
    of the undisturbed run."""
    draw = plan.draw(case)
    faults = plan.chosen(name for name in FAULTS if name != FULL or can_mount())
    draw.shuffle(faults)
    run = Run(config, case, STEPS_PER_FAULT * (len(faults) + 1))
    run.start()
    assert run.end() == 0, run.said()
    expected, models = run.losses(), run.models()
    assert len(expected) == run.num_steps
    small = run.work / "checkpoints"
    small.mkdir(exist_ok=True)
    if can_mount():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)], check=True)
    run.begin_anew()
    for fault in faults:
        if plan.is_over:
            break
        at = next_step(run.last_step(), draw)
        run.wait(lambda at=at: run.last_step() >= at and len(run.ranks()) == 2, f"step {at}")
        note(_meet(run, fault, draw, expected))
    assert run.end() == 0, run.said()[-2000:]
    return run.losses() == expected and run.models() == models


def _meet(run: Run, fault: str, draw: random.Random, expected: dict[int, float]) -> Seen:
    old = {sign.pid for sign in run.ranks()}
    FAULTS[fault](run, draw)
    run.wait(lambda: bool(_again(run, old)), "the first step after it")
    recover_s = time.time() - run.hit_s
    began = min(_again(run, old)) - 1
    run.wait(lambda: run.last_step() >= run.furthest + BEYOND, "new steps")
    return Seen(
        fault,
        run.case.precision,
        run.case.zero,
        run.furthest,
        run.furthest - began,
        round(recover_s, 1),
        largest_difference(run.losses(), expected),
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


def can_mount_in_a_name_space() -> bool:
    """Whether this user may mount a file system in a name space."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
