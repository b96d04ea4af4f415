"""One answer in the making, as the scheduler sees it: tokens, cache, rank in the queue."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer so far, and how much of them the key-value cache holds."""

    id: str
    token_ids: array[int]
    """Prompt and emitted tokens; the sampled ones are appended."""
    priority: int = 0
    deadline_s: float | None = None
    num_cached: int = 0
    """Leading tokens whose keys and values are in the cache."""
    blocks: array[int] = field(default_factory=lambda: array("i"))
    """Blocks of the cache, in the order of the tokens."""
    arrival: int = -1
    """Set by the scheduler; kept through preemption."""

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen yet: one when decoding, more in prefill."""
        return len(self.token_ids) - self.num_cached

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: higher priority first, then first come."""
        return (-self.priority, self.arrival)


def new_sequence(
    id: str,
    token_ids: Iterable[int],
    *,
    priority: int = 0,
    deadline_s: float | None = None,
) -> Sequence:
    """A sequence of which nothing is in the cache yet."""
    return Sequence(id, array("q", token_ids), priority, deadline_s)
