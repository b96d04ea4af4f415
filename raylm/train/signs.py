"""Signs of life: what each rank last did, in files that the driver reads.

    <work>/ranks/<attempt>/rank-00003.json     rank, process, node, step, and a count of beats

A thread of the rank writes its file every second, so that a process that is stopped, or that
holds the interpreter for good, falls silent. A rank that waits for another one does not: what
each is at, and how far it has moved, tells who is waited for.

The driver takes the folder away when it begins another attempt. A rank that finds it gone has
been given up and did not hear of it (its node was cut off, or slept), and ends at once: it must
not write beside those that took its place.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from raylm.processes import created_here

RANKS = "ranks"
"""Folder in the stage's work folder."""
BEAT_S = 1.0
_STEPS, _LEAST_STEPS = 16, 3


class Doing(StrEnum):
    """What a rank is at, in words that follow "is"."""

    START = "starting"
    FIRST_STEP = "in its first step"
    """Of an attempt, or after going back: it allocates and compiles."""
    STEP = "in a step"
    READ = "reading samples"
    VALIDATE = "validating"
    SAVE = "saving a checkpoint"
    WRITE_MODEL = "writing the model"


@dataclass(frozen=True, slots=True)
class Sign:
    """What one rank said last."""

    rank: int
    pid: int
    created: float
    """Start of the process, Unix time: a number alone may have been given anew."""
    host: str
    node_id: str
    """Ray's; empty where the training runs without it."""
    step: int = -1
    """Steps done; -1 while the worker starts."""
    beats: int = 0
    doing: str = Doing.START
    moves: int = 0
    """Times that it went over to something else: ranks of one attempt count alike."""
    step_s: float | None = None
    """Median time of its last steps; None while there were few."""

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def begin_attempt(work: Path) -> str:
    """Make the folder for a new attempt's signs, and end what may be left of earlier ones."""
    ranks, attempt = work / RANKS, os.urandom(4).hex()
    old = work / f".{RANKS}-{attempt}"
    # Renamed first: a rank could write into a folder while its files are being removed.
    with suppress(FileNotFoundError):
        ranks.rename(old)
    shutil.rmtree(old, ignore_errors=True)
    (ranks / attempt).mkdir(parents=True)
    return attempt


class Beat:
    """This rank's signs; the loop says what it is at."""

    def __init__(self, folder: Path, sign: Sign) -> None:
        self._file = folder / f"rank-{sign.rank:05d}.json"
        self._sign = asdict(sign)
        self._is_first = True
        self._stepped_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=_STEPS)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="raylm-signs", daemon=True)
        self._thread.start()

    def step(self, done: int) -> None:
        """Note how many steps are done, and that the next begins; the first time it is written
        before this returns.
        """
        has_begun, now_s = self._sign["step"] >= 0, time.monotonic()
        if self._stepped_s is not None:
            self._steps_s.append(now_s - self._stepped_s)
        self._stepped_s = now_s
        if len(self._steps_s) >= _LEAST_STEPS:
            self._sign["step_s"] = round(statistics.median(self._steps_s), 3)
        self._sign["step"] = done
        self._move(Doing.FIRST_STEP if self._is_first else Doing.STEP)
        self._is_first = False
        if not has_begun:
            self._write()

    @contextmanager
    def doing(self, what: Doing) -> Iterator[None]:
        """Be at something else for a while."""
        before = self._sign["doing"]
        self._move(what)
        try:
            yield
        finally:
            self._move(before)
            if what is Doing.START:
                self._is_first, self._stepped_s = True, None

    def _move(self, what: Doing) -> None:
        self._sign["doing"] = what
        self._sign["moves"] += 1

    def close(self) -> None:
        """Stop, and take the file away."""
        self._stop.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _run(self) -> None:
        self._write()
        while not self._stop.wait(BEAT_S):
            self._write()

    def _write(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        with self._writing:
            self._sign["beats"] += 1
            try:
                temporary.write_text(json.dumps(self._sign), encoding="utf-8")
                temporary.rename(self._file)
            except FileNotFoundError:
                if not self._stop.is_set() and not self._file.parent.exists():
                    _end_given_up(self._sign["rank"])
            except OSError:
                return  # a full disk must not end the training


def _end_given_up(rank: int) -> None:
    sys.stderr.write(f"rank {rank} was given up: its attempt is over\n")
    sys.stderr.flush()
    # Not by an exception: the main thread may wait for a rank that is gone.
    os._exit(1)


@contextmanager
def beating(work: Path, attempt: str, rank: int) -> Iterator[Beat]:
    """Give signs of life in a rank's process, with Ray's names for the place."""
    import ray

    folder = work / RANKS / attempt
    sign = Sign(
        rank=rank,
        pid=os.getpid(),
        created=created_here(),
        host=os.uname().nodename,
        node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
    )
    beat = Beat(folder, sign)
    try:
        yield beat
    finally:
        beat.close()


def read_signs(work: Path) -> list[Sign]:
    """The last sign of every rank."""
    found = []
    for file in sorted((work / RANKS).glob("*/rank-*.json")):
        try:
            found.append(Sign(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # just being replaced
    return found
