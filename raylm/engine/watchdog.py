"""Notices a step that hangs: such a thread cannot be stopped, but those who wait can be told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from raylm.errors import RaylmError

_LOOK_S = 1.0  # between two looks, at most


class Watchdog:
    """Calls `on_stall` from a thread of its own, once for each step that takes too long."""

    def __init__(self, timeout_s: float, on_stall: Callable[[RaylmError], None]) -> None:
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._began_s: float | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="raylm-watchdog", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._began_s = time.monotonic()

    def end(self) -> None:
        """It has come to its end."""
        self._began_s = None

    def stop(self) -> None:
        """There will be no further step."""
        self._stopped.set()

    def check(self) -> None:
        """Return if no step hangs.

        Raises:
            RaylmError: one does (`engine-stalled`).
        """
        if self._hangs(self._began_s):
            raise self._error()

    def _watch(self) -> None:
        told_s = None
        while not self._stopped.wait(min(_LOOK_S, self._timeout_s / 4)):
            began_s = self._began_s
            if began_s != told_s and self._hangs(began_s):
                told_s = began_s
                self._on_stall(self._error())

    def _hangs(self, began_s: float | None) -> bool:
        return began_s is not None and time.monotonic() - began_s > self._timeout_s

    def _error(self) -> RaylmError:
        return RaylmError(
            f"a step of the engine has taken more than {self._timeout_s:g} s",
            code="engine-stalled",
        )
