"""One answer in the making, as the scheduler sees it: tokens, cache, rank in the queue."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from raylm.engine.background import PRIORITY


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer so far, and how much of them the key-value cache holds."""

    id: str
    token_ids: array[int]
    """Prompt and emitted tokens; the sampled ones are appended."""
    priority: int = 0
    deadline_s: float | None = None
    salt: str = ""
    """Blocks are shared among sequences of one salt only."""
    num_scored: int = 0
    """Leading tokens whose logits are all wanted, so that none may come from the cache."""
    num_cached: int = 0
    """Leading tokens whose keys and values are in the cache."""
    num_drafted: int = 0
    """Leading tokens whose keys and values the draft model has in the same blocks."""
    num_found: int | None = None
    """Leading tokens that were in the cache already when it was first admitted."""
    blocks: array[int] = field(default_factory=lambda: array("i"))
    """Blocks of the cache, in the order of the tokens."""
    keys: list[bytes] = field(default_factory=list)
    """Keys of its full blocks, as far as they were worked out; see `BlockManager`."""
    arrival: int = -1
    """Set by the scheduler; kept through preemption."""

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen yet: one when decoding, more in prefill."""
        return len(self.token_ids) - self.num_cached

    @property
    def is_background(self) -> bool:
        """Whether nobody waits for it."""
        return self.priority <= PRIORITY

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
    salt: str = "",
    num_scored: int = 0,
) -> Sequence:
    """A sequence of which nothing is in the cache yet."""
    return Sequence(id, array("q", token_ids), priority, deadline_s, salt, num_scored)
