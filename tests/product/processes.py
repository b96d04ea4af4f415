"""raylm as a process: started, watched through its files, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_started: list[subprocess.Popen[str]] = []


def start(*arguments: str, store: Path) -> subprocess.Popen[str]:
    """Start `raylm ARGUMENTS` on a store; `stop_all` ends what a failed test leaves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As shells start background jobs: children would inherit that. They inherit no handler.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "raylm", *arguments],
        env={**os.environ, "RAYLM_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def stop_all() -> None:
    """End every process that still runs."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float) -> None:
    """Wait until something is true while the process lives."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} too early:\n{out}\n{err}")
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)


def end(process: subprocess.Popen[str], number: signal.Signals, limit_s: float = 60) -> str:
    """Send a signal and return what was written to stderr."""
    process.send_signal(number)
    return process.communicate(timeout=limit_s)[1]


def orphans(store: Path) -> list[str]:
    """Processes that belong to a store's clusters, by what they were started with."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        token = environment.get("RAY_AUTH_TOKEN_PATH", "")
        if token.startswith(f"{store}/") and process.pid != os.getpid():
            found.append(" ".join(process.info["cmdline"] or [])[:80])
    return found


def no_orphans(store: Path, limit_s: float = 20) -> None:
    """Wait until nothing of the store's clusters is left."""
    deadline = time.monotonic() + limit_s
    while left := orphans(store):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)
