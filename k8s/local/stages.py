"""Stages with their times, for people to read on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Prints a line for each stage when it has ended, and the sum."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of that name; a failed one is printed too."""
        start = time.monotonic()
        result = "failed"
        try:
            yield
            result = ""
        finally:
            say(f"  {name:<44} {time.monotonic() - start:6.1f} s {result}".rstrip())

    def end(self, name: str) -> None:
        """Print the whole time."""
        say(f"{name} in {time.monotonic() - self._start:.1f} s")


def say(line: str) -> None:
    """Print for people."""
    print(line, file=sys.stderr, flush=True)
