"""Turns: the calls of one gateway wait for the engines, and go in by fair sharing.

So many answers may be in a model's engines at a time; the others wait here, where it can still
be chosen who goes first. How many may wait in all is counted by `Admission`; when that is full,
who waits with the most gives up a place to others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from raylm.serve.failure import overloaded
from raylm.serve.fair import FairQueue, Ticket, overflow
from raylm.serve.tenant import Tenant


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call in a line: it waits, or is in the engines, or was turned away."""

    num_answers: int
    entered: asyncio.Future[None]
    is_in: bool = False


@dataclass(slots=True)
class _Line:
    """The line in front of one model's engines."""

    queue: FairQueue = field(default_factory=FairQueue)
    waiters: dict[Ticket, _Waiter] = field(default_factory=dict)
    """Those that wait."""
    num_running: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A call that is in the engines; charge it for what it is served."""

    ticket: Ticket
    queue: FairQueue

    def charge(self, *, num_input: int = 0, num_output: int = 0) -> None:
        """It was served so many tokens."""
        self.queue.charge(self.ticket, num_input=num_input, num_output=num_output)


class Turns:
    """The lines of all models; `num_running` answers of each may be in its engines."""

    def __init__(self, num_running: int) -> None:
        self._num_running = num_running
        self._lines: dict[str, _Line] = {}

    @property
    def num_waiting(self) -> int:
        """Calls that wait for their turn."""
        return sum(len(line.queue) for line in self._lines.values())

    @asynccontextmanager
    async def turn(
        self, model: str, tenant: Tenant, *, priority: int, num_answers: int = 1, call: str = ""
    ) -> AsyncGenerator[Turn, None]:
        """Wait for the turn of a call, or of one text of `call`, and hold it.

        A call goes in as a whole as soon as there is one place, so that one with many answers
        is not overtaken for ever; it then takes as many places as it has answers. Of a call to
        read texts each goes in by itself, so that a long list does not hold others up.

        Raises:
            RequestError: 503, it gave up its place.
        """
        line = self._lines.setdefault(model, _Line())
        ticket = line.queue.add(tenant.id, weight=tenant.weight, priority=priority, call=call)
        waiter = _Waiter(num_answers, asyncio.get_running_loop().create_future())
        line.waiters[ticket] = waiter
        self._let_in(line)
        try:
            await waiter.entered
            yield Turn(ticket, line.queue)
        finally:
            if waiter.is_in:
                line.num_running -= num_answers
                self._let_in(line)
            elif line.waiters.pop(ticket, None) is not None:  # its client has left
                line.queue.remove(ticket)

    def can_make_room(self, tenant: Tenant) -> bool:
        """Whether another than `tenant` waits with so much that it would have to give way."""
        return self._victim(tenant) is not None

    def make_room(self, tenant: Tenant) -> bool:
        """Turn away a call of who waits with the most, if that is not `tenant`; whether one was."""
        victim = self._victim(tenant)
        if victim is None:
            return False
        lines = [line for line in self._lines.values() if line.queue.last_of(victim) is not None]
        line = max(lines, key=lambda each: each.queue.loads()[victim])
        ticket = line.queue.last_of(victim)
        assert ticket is not None
        line.queue.remove(ticket)
        waiter = line.waiters.pop(ticket)
        if not waiter.entered.done():
            waiter.entered.set_exception(overloaded())
        return True

    def _victim(self, tenant: Tenant) -> str | None:
        loads: Counter[str] = Counter()
        for line in self._lines.values():
            loads.update(line.queue.loads())
        return overflow(loads, tenant.id, tenant.weight)

    def _let_in(self, line: _Line) -> None:
        while line.num_running < self._num_running and (ticket := line.queue.pop()) is not None:
            waiter = line.waiters.pop(ticket)
            waiter.is_in = True
            line.num_running += waiter.num_answers
            if not waiter.entered.done():  # else it is about to leave, and lets the next one in
                waiter.entered.set_result(None)
