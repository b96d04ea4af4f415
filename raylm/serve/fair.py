"""Fair sharing by tokens: whose request is next when more is wanted than the engines do. Pure.

The Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI
2024, arXiv:2401.00588, algorithm 2): each tenant has a counter of the tokens it was served,
weighted by what they cost and divided by the tenant's weight, and the one with the lowest
counter is next. A tenant that begins to wait is lifted to the lowest counter of those that wait,
or to that of the last one that did, so that nobody saves up service by being idle.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

INPUT_COST = 1.0
OUTPUT_COST = 2.0
"""A token of the answer takes a step of its own; the prompt's share theirs (the paper's values)."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A call, or one of its texts, that waits or is being served."""

    tenant: str
    weight: float
    priority: int
    number: int
    """In order of arrival."""
    call: str = ""
    """The call that it belongs to, where one has several tickets: each of its texts has one."""

    @property
    def rank(self) -> tuple[int, int]:
        """Among those of its tenant: higher priority first, then first come."""
        return (-self.priority, self.number)


@dataclass(slots=True)
class _Share:
    counter: float = 0.0
    waiting: list[Ticket] = field(default_factory=list)  # by rank
    calls: Counter[str | int] = field(default_factory=Counter)
    """How many tickets of each call wait; of calls with one ticket, by its number."""


class FairQueue:
    """The calls that wait for the engines of one model, and what each tenant was served."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._num_arrived = 0
        self._last = _Share()
        """Of the tenant that left the queue last."""

    def __len__(self) -> int:
        """Calls that wait."""
        return sum(len(share.calls) for share in self._shares.values())

    def add(self, tenant: str, *, weight: float, priority: int, call: str = "") -> Ticket:
        """Queue a call, or a text of one."""
        share = self._shares.setdefault(tenant, _Share())
        if not share.waiting:
            counters = [s.counter for s in self._shares.values() if s.waiting]
            share.counter = max(share.counter, min(counters, default=self._last.counter))
        ticket = Ticket(tenant, weight, priority, self._num_arrived, call)
        self._num_arrived += 1
        bisect.insort(share.waiting, ticket, key=_rank)
        share.calls[ticket.call or ticket.number] += 1
        return ticket

    def pop(self) -> Ticket | None:
        """The call to serve next; None if nobody waits."""
        waiting = [share for share in self._shares.values() if share.waiting]
        if not waiting:
            return None
        # Of equal counters, who came first.
        share = min(waiting, key=lambda s: (s.counter, s.waiting[0].number))
        ticket = share.waiting.pop(0)
        self._leave(share, ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """A call does not wait any longer: its client left, or it was turned away."""
        share = self._shares[ticket.tenant]
        share.waiting.remove(ticket)
        self._leave(share, ticket)

    def charge(self, ticket: Ticket, *, num_input: int = 0, num_output: int = 0) -> None:
        """A call was served so many tokens."""
        cost = num_input * INPUT_COST + num_output * OUTPUT_COST
        self._shares[ticket.tenant].counter += cost / ticket.weight

    def last_of(self, tenant: str) -> Ticket | None:
        """The call of a tenant that would be served last."""
        share = self._shares.get(tenant)
        return share.waiting[-1] if share is not None and share.waiting else None

    def loads(self) -> dict[str, float]:
        """How many calls each tenant has waiting, divided by its weight."""
        return {
            name: len(share.calls) / share.waiting[-1].weight
            for name, share in self._shares.items()
            if share.waiting
        }

    def _leave(self, share: _Share, ticket: Ticket) -> None:
        call = ticket.call or ticket.number
        share.calls[call] -= 1
        if not share.calls[call]:
            del share.calls[call]
        if not share.waiting:
            self._last = share


def overflow(loads: Mapping[str, float], tenant: str, weight: float) -> str | None:
    """Who must give up a place when the queue is full and a call of `tenant` comes. Pure.

    The tenant that has the most waiting for its weight (longest queue drop: the longest line
    pays for its own length), if that is more than the newcomer would have; else None.
    """
    longest = max(loads, key=lambda name: loads[name], default=None)
    if longest is None or loads[longest] <= loads.get(tenant, 0.0) + 1 / weight:
        return None
    return longest


def _rank(ticket: Ticket) -> tuple[int, int]:
    return ticket.rank
