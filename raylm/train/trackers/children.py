"""The driver's side of the trackers: which are there, their processes, and their end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from raylm.errors import MissingExtra
from raylm.progress import Report, Tick
from raylm.train.trackers.follow import FINISHED, PLACE

END_S = 15.0
"""Time for a tracker to send what it still has when the training is over."""


def check_trackers(names: Iterable[str]) -> None:
    """See that their packages are installed.

    Raises:
        MissingExtra: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtra(name, extra=name)


class Trackers:
    """One process for each tracker, for as long as the training goes on.

    What happens to them is told, and changes nothing for the training.
    """

    def __init__(
        self, names: Iterable[str], work: Path, report: Report, *, end_s: float = END_S
    ) -> None:
        self._names, self._work, self._report = tuple(names), work, report
        self._end_s = end_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._is_ending = False

    def __enter__(self) -> Trackers:
        (self._work / PLACE).mkdir(parents=True, exist_ok=True)
        for name in self._names:
            with self._log(name).open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "raylm.train.trackers.follow", name, str(self._work)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C is the driver's: it ends them when it has ended the workers.
                    start_new_session=True,
                )
            self._children[name] = child
            threading.Thread(target=self._mourn, args=(name, child), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        deadline = time.monotonic() + self._end_s
        for child in self._children.values():
            # It may have ended by itself.
            with suppress(OSError):
                assert child.stdin is not None
                if kind is None:
                    child.stdin.write(FINISHED)
                child.stdin.close()
        for name, child in self._children.items():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                self._tell(name, f"it did not end within {self._end_s:g} s")

    def pids(self) -> dict[str, int]:
        """The process of each tracker."""
        return {name: child.pid for name, child in self._children.items()}

    def _mourn(self, name: str, child: subprocess.Popen[bytes]) -> None:
        """Tell of a tracker that ended before the training did, or badly."""
        code = child.wait()
        if code > 0 or (code and not self._is_ending):
            lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
            cause = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
            self._tell(name, cause)

    def _tell(self, name: str, cause: str) -> None:
        text = f"{name} is not told any more: {cause} ({self._log(name)})"
        self._report(Tick("train", text))

    def _log(self, name: str) -> Path:
        return self._work / PLACE / f"{name}.log"
