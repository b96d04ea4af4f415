"""Start in a machine, wait with a deadline, find again by a file that holds the pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from k8s.local.command import environment
from k8s.local.layout import LOGS, PIDS
from raylm.errors import HostError

_POLL_S = 0.1
_CHILD_S = 10.0
_LAST_LINES = 15


def spawn(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, with `logs/<name>.log` for what it writes."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with log_path(name).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(),
            start_new_session=True,
        )


def only_child(parent: subprocess.Popen[bytes], name: str) -> int:
    """The pid, as this machine counts, of what `nsenter` or `unshare` has started.

    Raises:
        HostError: it ended instead.
    """
    path = Path("/proc", str(parent.pid), "task", str(parent.pid), "children")

    def found() -> list[str]:
        try:
            return path.read_text().split()
        except OSError:
            return []

    wait_until(f"the process of {name}", lambda: bool(found()), _CHILD_S, dies_with=(name, parent))
    return int(found()[0])


def record(name: str, pid: int) -> None:
    """Remember a process."""
    PIDS.mkdir(parents=True, exist_ok=True)
    (PIDS / name).write_text(f"{pid} {_started(pid)}\n")


def recorded(name: str) -> int | None:
    """The pid of a process that was remembered and still lives."""
    try:
        pid, started = (PIDS / name).read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _started(int(pid)) == started else None


def names() -> list[str]:
    """What was remembered, whether it lives or not."""
    return sorted(path.name for path in PIDS.iterdir()) if PIDS.is_dir() else []


def kill_all(pids: list[int]) -> None:
    """SIGKILL to each that is there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(
    what: str,
    probe: Callable[[], bool],
    timeout_s: float,
    *,
    dies_with: tuple[str, subprocess.Popen[bytes]] | None = None,
    poll_s: float = _POLL_S,
) -> None:
    """Return when the probe says so.

    Args:
        dies_with: a process, and the name of its log, without which there is no hope.

    Raises:
        HostError: `k8s-timeout` or `k8s-died`, with the last lines of the log.
    """
    deadline = time.monotonic() + timeout_s
    while not probe():
        if dies_with and dies_with[1].poll() is not None:
            raise HostError(
                f"{dies_with[0]} ended with {dies_with[1].returncode}:\n{last_lines(dies_with[0])}",
                code="k8s-died",
            )
        if time.monotonic() > deadline:
            tail = f":\n{last_lines(dies_with[0])}" if dies_with else ""
            raise HostError(f"{what}: not within {timeout_s:.0f} s{tail}", code="k8s-timeout")
        time.sleep(poll_s)


def log_path(name: str) -> Path:
    """Where a process writes."""
    return LOGS / f"{name}.log"


def last_lines(name: str) -> str:
    """The end of a process's log."""
    try:
        lines = log_path(name).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LAST_LINES:])


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot: tells it from a later one."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
