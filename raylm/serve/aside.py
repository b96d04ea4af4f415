"""Aside: a deployment beside the answers' way, which must not take them down.

What it does not say in time is as if it had not been asked; for `AWAY_S` it is then not asked
at all, so that a frozen one does not cost every call its patience.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger("raylm.serve")
T = TypeVar("T")
PATIENCE_S = 0.5
AWAY_S = 2.0
TELL_S = 2.0


class Aside:
    """Asks and tells one such deployment."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._away_until_s = 0.0
        self._messages: set[asyncio.Task[None]] = set()

    @property
    def is_away(self) -> bool:
        """Whether it has just failed to answer."""
        return time.monotonic() < self._away_until_s

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """What it says; None if it does not."""
        if self.is_away:
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await call()
        except Exception as error:  # whatever it is
            log.warning("%s does not answer: %s", self._name, type(error).__name__)
            self._away_until_s = time.monotonic() + AWAY_S
            return None

    def tell(self, call: Callable[[], Awaitable[None]]) -> None:
        """Send it something without waiting."""
        task = asyncio.get_running_loop().create_task(self._send(call))
        self._messages.add(task)  # else it may be collected before it has run
        task.add_done_callback(self._messages.discard)

    async def _send(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(TELL_S):
                await call()
        except Exception as error:
            log.warning("%s was not told: %s", self._name, type(error).__name__)
