"""processes: which process is it? Its number and when it was started; numbers are used again."""

from __future__ import annotations

import os

import psutil


def created(pid: int) -> float | None:
    """When a live process was started (seconds since the epoch), None if it is not there."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def created_here() -> float:
    """When this process was started (seconds since the epoch)."""
    return psutil.Process(os.getpid()).create_time()


def is_same(pid: int, create_time: float) -> bool:
    """Whether this process is alive and not a later one that got its number.

    Args:
        create_time: seconds since the epoch; whole seconds, rounded down, are enough.
    """
    now = created(pid)
    # psutil reckons from the boot time, which moves a little when the clock is set.
    return now is not None and abs(now - create_time) < 2.0
