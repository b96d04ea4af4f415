"""Admission: how much a gateway takes on at a time, and how it stops.

Ray Serve has limits of its own, but answers them in plain text, so the gateway keeps its
count and refuses in OpenAI's shape before a body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from raylm.serve.failure import draining, overloaded
from raylm.serve.tenant import Tenant
from raylm.serve.turns import Turns


class Admission:
    """Counts the calls in flight, and those whose bodies are still on their way.

    When it is full, a call that waits for its turn may have to give way to another tenant's.
    """

    def __init__(self, capacity: int, turns: Turns) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.is_draining = False
        self._turns = turns
        self._arriving: dict[asyncio.Timeout, None] = {}  # the oldest first

    @asynccontextmanager
    async def arriving(self, tenant: Tenant, limit_s: float) -> AsyncGenerator[None, None]:
        """While a body arrives: it takes no place in flight, so slow senders keep nobody out.

        As many may arrive as are taken on; where one comes more, the oldest gives way to it.

        Raises:
            RequestError: 503 with Retry-After: full, or stopping; at once.
            TimeoutError: it took longer than the limit, or was the oldest of too many.
        """
        if self.is_draining:
            raise draining()
        # Nobody who waits is turned away for a call that may never be there as a whole.
        if self.in_flight >= self.capacity and not self._turns.can_make_room(tenant):
            raise overloaded()
        async with asyncio.timeout(limit_s) as patience:
            if len(self._arriving) >= self.capacity:
                oldest = next(iter(self._arriving))
                del self._arriving[oldest]
                if not oldest.expired():
                    oldest.reschedule(0)
            self._arriving[patience] = None
            try:
                yield
            finally:
                self._arriving.pop(patience, None)

    def enter(self, tenant: Tenant) -> None:
        """Count one call in; `leave` must follow.

        Raises:
            RequestError: 503 with Retry-After: full, or stopping.
        """
        if self.is_draining:
            raise draining()
        if self.in_flight >= self.capacity and not self._turns.make_room(tenant):
            raise overloaded()
        self.in_flight += 1

    def leave(self) -> None:
        """Count one call out."""
        self.in_flight -= 1

    def drain(self) -> int:
        """Take nothing new; how much still runs."""
        self.is_draining = True
        return self.in_flight
