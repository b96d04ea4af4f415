"""Which replicas take requests, as one gateway sees it: where each answer is, and who is out.

Serve's own health checks take a quarter of a minute to notice a frozen replica. A gateway
notices sooner, because a replica that works on an answer is never silent for long; what it
has noticed lives here, and the request router asks it. Times are on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

OUT_S = 30.0
"""A lost replica is not chosen for so long; by then Serve has replaced it, or it works again."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a replica stands with this gateway."""

    replica: str
    out_until_s: float = 0.0
    """Lost; not to be chosen before."""


def rank_replicas(
    avoid: Collection[str], replicas: Sequence[Standing], now_s: float
) -> list[list[str]]:
    """Replicas for a request in ranks, the best first; within a rank load decides. Pure.

    First those in rotation that the request has not failed on (`avoid`), then the others in
    rotation; those that are out are in no rank: the request waits until one is back.
    """
    able = [each.replica for each in replicas if each.out_until_s <= now_s]
    ranks = [[r for r in able if r not in avoid], [r for r in able if r in avoid]]
    return [rank for rank in ranks if rank]


def nothing() -> None:
    """For a leg that nobody watches at the moment."""


@dataclass(slots=True, eq=False)
class Leg:
    """One attempt at an answer: from the queue to a replica."""

    avoid: frozenset[str] = frozenset()
    on_wait: Callable[[], None] = nothing
    """It waits for a replica (again): silence means nothing now."""
    on_sent: Callable[[], None] = nothing
    """It was sent to a replica, from which signs of life must come."""
    replica: str | None = None

    def wait(self) -> None:
        """It is in the router's queue."""
        self.replica = None
        self.on_wait()

    def sent(self, replica: str) -> None:
        """The router has sent it."""
        self.replica = replica
        self.on_sent()


@dataclass(slots=True)
class Rotation:
    """The attempts under way in this process, and the replicas that are out."""

    legs: dict[str, Leg] = field(default_factory=dict)
    """By the request id of the attempt."""
    _out_until_s: dict[str, float] = field(default_factory=dict)

    def lose(self, replica: str, now_s: float) -> None:
        """A replica died or fell silent: choose others."""
        self._out_until_s = {r: t for r, t in self._out_until_s.items() if t > now_s}
        self._out_until_s[replica] = now_s + OUT_S

    def heard(self, replica: str | None) -> None:
        """A replica has sent something: it is back, if it was out."""
        if self._out_until_s and replica is not None:
            self._out_until_s.pop(replica, None)

    def standing(self, replica: str) -> Standing:
        """How a replica stands."""
        return Standing(replica, self._out_until_s.get(replica, 0.0))


ROTATION = Rotation()
"""This process's own: Serve builds the request router itself, so both ends meet here."""
