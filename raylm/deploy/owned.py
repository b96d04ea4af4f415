"""Owned processes: what a cluster started, found by a mark that descendants inherit.

Never by name: `ray stop` and `pkill ray` end the clusters of other people too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from raylm.processes import created

MARK = "RAYLM_CLUSTER_ID"
STORE_MARK = "RAYLM_CLUSTER_STORE"
"""Only on clusters that outlive the command that started them."""

Find = Callable[[], list[int]]


def marked(name: str, value: str) -> list[int]:
    """Ids of the live processes of this user whose environment has `name=value`.

    This process and those that started it are left out.
    """
    mine = lineage()
    return sorted(pid for pid, found in _marks(name) if found == value and pid not in mine)


def lineage() -> set[int]:
    """This process and those that started it."""
    return {os.getpid(), *(p.pid for p in psutil.Process().parents())}


def marks(name: str) -> set[str]:
    """All values that `name` has in live processes of this user."""
    return {value for _, value in _marks(name)}


def _marks(name: str) -> Iterator[tuple[int, str]]:
    start = f"{name}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # Gone, a zombie, or of another user: not ours.
        with suppress(OSError):
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                if variable.startswith(start):
                    yield int(entry.name), os.fsdecode(variable[len(start) :])
                    break


def in_session(leader: int) -> list[int]:
    """Ids of the processes in the session of a detached process, itself included."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader and _is_alive(pid):
                found.append(pid)
    return sorted(found)


def stop(find: Find, *, term_s: float = 5.0, kill_s: float = 5.0) -> tuple[int, list[int]]:
    """End what `find` returns: SIGTERM, then SIGKILL, until nothing is found.

    Returns:
        How many processes there were, and those that are still there.
    """
    seen = set(pids := find())
    for number, patience_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, kill_s)):
        _signal(pids, number)
        deadline = time.monotonic() + patience_s
        while pids and time.monotonic() < deadline:
            time.sleep(0.05)
            pids = find()
            new = [pid for pid in pids if pid not in seen]
            _signal(new, number)
            seen.update(new)
    return len(seen), pids


def stop_late(find: Find, *, patience_s: float) -> None:
    """Give what `find` returns the time to end by itself, then end what is left."""
    deadline = time.monotonic() + patience_s
    while find():
        if time.monotonic() > deadline:
            stop(find, term_s=1, kill_s=2)
            return
        time.sleep(0.05)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    return created(pid) is not None
