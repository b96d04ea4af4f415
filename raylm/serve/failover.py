"""Answers and texts that outlive the replica that works on them.

When a replica dies, freezes or breaks in mid-answer, the request goes to another one together
with the tokens that the client already has. Sampling is keyed by (seed, position) and text,
penalties and grammars are rebuilt from the emitted tokens, so the answer goes on with what
the first replica would have said: no gap, no repeat, no error. Where a model's name was deployed
again with other weights meanwhile, only a replica with the first weights may go on. A text to embed
or classify is simply given to another.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from raylm.engine.protocol import Chunk, Request
from raylm.serve.failure import engine_failed, model_replaced

log = logging.getLogger("raylm.serve")

MAX_LOSSES = 2
"""Replicas that may be lost under a request without a token in between.

A request that itself breaks engines would otherwise break one after the other; an innocent
one beside it gets on between the losses.
"""

Cause = Literal["died", "silent", "broken"]
Found = TypeVar("Found")


class OtherWeights(Exception):
    """A replica whose weights are not those that began the answer, and so was not lost to it."""

    def __init__(self, replica: str | None) -> None:
        super().__init__(f"replica {replica or 'unknown'} has other weights")
        self.replica = replica


class ReplicaLost(Exception):
    """The replica that worked on an answer will not finish it."""

    def __init__(self, cause: Cause, replica: str | None) -> None:
        super().__init__(f"replica {replica or 'unknown'}: {cause}")
        self.cause: Cause = cause
        self.replica = replica


@dataclass(slots=True)
class RetryBudget:
    """How many continuations a gateway may start, so that failing replicas start no storm.

    Each costs one; every new answer earns `ratio`. All that a gateway has in flight may be
    lost at once, so that is where it starts, and no more can be saved up.
    """

    capacity: float
    ratio: float = 0.2
    _left: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._left = self.capacity

    def earn(self) -> None:
        """A new answer has begun."""
        self._left = min(self.capacity, self._left + self.ratio)

    def spend(self) -> bool:
        """Whether one more continuation may start; it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


Attempt = Callable[[Request, frozenset[str]], AsyncGenerator[Sequence[Chunk], None]]
"""One replica's part of an answer, from one that is not in the set if there is another.

Raises ReplicaLost when the replica is, OtherWeights when it may not go on with the answer, and
RequestError when the request is refused.
"""


async def continued(
    request: Request,
    attempt: Attempt,
    budget: RetryBudget,
    *,
    on_lost: Callable[[Cause], None] = lambda cause: None,
) -> AsyncGenerator[Sequence[Chunk], None]:
    """The whole answer, from as many replicas as it takes.

    Closing it early closes the attempt under way.

    Raises:
        RequestError: refused; or 500, when the request lost `MAX_LOSSES` replicas without
            getting a token further, or the budget is spent; or 503, when no replica with the
            weights that began the answer is left.
    """
    budget.earn()
    emitted, digest = list(request.emitted_ids), request.digest
    avoid: frozenset[str] = frozenset()
    num_attempts = losses = 0
    while True:
        # An id of its own for each attempt: the one before may still run where it fell silent.
        part = dataclasses.replace(
            request,
            id=f"{request.id}.{num_attempts}",
            emitted_ids=tuple(emitted),
            digest=digest,
        )
        stream = attempt(part, avoid)
        try:
            async for chunks in stream:
                num_before = len(emitted)
                for chunk in chunks:
                    if chunk.finish_reason == "cancelled":  # its engine was closed
                        raise ReplicaLost("broken", None)
                    emitted.extend(chunk.token_ids)
                    digest = digest or chunk.digest
                    if chunk.prompt_logprobs:  # they come once, maybe before the first token
                        request = _unscored(request)
                if len(emitted) > num_before:
                    losses = 0
                yield chunks
                if chunks and chunks[-1].finish_reason is not None:
                    return
            raise ReplicaLost("broken", None)  # it ended without an end
        except ReplicaLost as lost:
            losses += 1
            num_attempts += 1
            if lost.replica is not None:
                avoid |= {lost.replica}
            on_lost(lost.cause)
            if losses >= MAX_LOSSES or not budget.spend():
                raise engine_failed(request.id) from lost
            log.warning("request %s goes on elsewhere: %s", request.id, lost)
        except OtherWeights as other:
            num_attempts += 1
            # One that it has failed on before is chosen only if there is no other.
            if other.replica is None or other.replica in avoid:
                raise model_replaced(request.id) from other
            avoid |= {other.replica}
        finally:
            await stream.aclose()


def _unscored(request: Request) -> Request:
    sampling = dataclasses.replace(request.sampling, num_prompt_logprobs=None)
    return dataclasses.replace(request, sampling=sampling)


async def repeated(
    request_id: str,
    attempt: Callable[[frozenset[str]], Awaitable[Found]],
    budget: RetryBudget,
    *,
    on_lost: Callable[[Cause], None] = lambda cause: None,
) -> Found:
    """A result that is the same whoever works it out; `attempt` is as `Attempt` about replicas.

    Raises:
        RequestError: refused; or 500, when `MAX_LOSSES` replicas were lost or the budget is spent.
    """
    budget.earn()
    avoid: frozenset[str] = frozenset()
    losses = 0
    while True:
        try:
            return await attempt(avoid)
        except ReplicaLost as lost:
            losses += 1
            if lost.replica is not None:
                avoid |= {lost.replica}
            on_lost(lost.cause)
            if losses >= MAX_LOSSES or not budget.spend():
                raise engine_failed(request_id) from lost
            log.warning("request %s is repeated elsewhere: %s", request_id, lost)
