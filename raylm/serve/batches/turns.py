"""Which batches are worked on: each tenant's oldest first, none crowding others out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """One batch that is not done; compares by age."""

    created_s: float
    tenant: str
    batch_id: str


def next_turns(waiting: Iterable[Turn], running: Iterable[Turn], most: int) -> Sequence[Turn]:
    """The batches to begin, so that `most` run at a time.

    Each place goes to the tenant with the fewest running, and of its batches to the oldest.
    """
    left = sorted(waiting)
    num_running = Counter(turn.tenant for turn in running)
    chosen: list[Turn] = []
    while left and num_running.total() < most:
        turn = min(left, key=lambda each: (num_running[each.tenant], each))
        left.remove(turn)
        num_running[turn.tenant] += 1
        chosen.append(turn)
    return chosen
