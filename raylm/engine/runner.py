"""What a step loop drives: the part of an engine that differs from model to model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from raylm.engine.answer import Answer
from raylm.engine.protocol import Chunk
from raylm.errors import RaylmError, RequestError


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave: chunks, and requests that ended with an error instead."""

    chunks: list[Chunk] = field(default_factory=list)
    failed: list[tuple[str, RaylmError]] = field(default_factory=list)


class Runner(Protocol):
    """Answers in the making over one model. Called from one thread, but for the counts."""

    @property
    def num_running(self) -> int:
        """Answers with a place in the batch."""
        ...

    @property
    def num_waiting(self) -> int:
        """Answers without one."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the key-value cache; 0 where it is not paged."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Those that nobody uses."""
        ...

    def add(self, answer: Answer) -> None:
        """Queue an answer."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget an answer and free what it holds."""
        ...

    def step(self, now_s: float) -> StepResult:
        """Bring what is running one token further; `now_s` is Unix time."""
        ...

    def abandon(self) -> list[str]:
        """After `step` raised: forget the answers that were in it, and say which."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def deadline_error(request_id: str) -> RaylmError:
    """The end of a request that waited longer than its client does."""
    return RequestError(
        f"request {request_id} was still waiting when its deadline passed",
        code="deadline_exceeded",
        status=504,
    )
