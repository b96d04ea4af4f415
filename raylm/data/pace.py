"""Signs of life: work runs in a thread, the caller's thread reports every second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from raylm.progress import Report, Tick

T = TypeVar("T")
_EVERY_S = 1.0


class Pacer:
    """Waits for work and reports meanwhile, always from the thread that calls it."""

    def __init__(self, report: Report, every_s: float = _EVERY_S) -> None:
        self._report = report
        self._every_s = every_s
        self._last = 0.0

    def say(self, text: str, done: float | None = None, total: float | None = None) -> None:
        """Report at once; `done` and `total` are bytes."""
        self._last = time.monotonic()
        self._report(Tick("data", text, done, total, "B" if total is not None else ""))

    def run(self, work: Callable[[], T], tell: Callable[[], None]) -> T:
        """Call `work` in a thread, `tell` every second until it is done.

        The thread is a daemon: an interrupt in the caller does not wait for it.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target, daemon=True, name="raylm-data")
        thread.start()
        while True:
            thread.join(max(0.0, self._last + self._every_s - time.monotonic()))
            if not thread.is_alive():
                break
            tell()
        if errors:
            raise errors[0]
        return results[0]

    def iterate(self, items: Iterable[T], tell: Callable[[], None]) -> Iterator[T]:
        """The items, with `tell` called every second, while they come and while they do not."""
        iterator = iter(items)
        while True:
            item = self.run(lambda: next(iterator, None), tell)
            if item is None:
                return
            yield item
            if time.monotonic() - self._last >= self._every_s:
                tell()
