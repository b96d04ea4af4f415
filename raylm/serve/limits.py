"""Admission: how much a gateway takes on at a time, and how it stops.

Ray Serve has limits of its own, but answers them in plain text, so the gateway keeps its
count and refuses in OpenAI's shape before a body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from raylm.serve.failure import draining, overloaded


class Admission:
    """Counts the calls in flight."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count one call in; `leave` must follow.

        Raises:
            RequestError: 503 with Retry-After: full, or stopping.
        """
        if self.is_draining:
            raise draining()
        if self.in_flight >= self.capacity:
            raise overloaded()
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count one call out."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    async def drain(self, timeout_s: float) -> int:
        """Take nothing new and wait for what runs; the number still running at the end."""
        self.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self.in_flight
