"""What a step loop drives: the part of an engine that differs from model to model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from raylm.engine.answer import Answer
from raylm.engine.encode import Encoded
from raylm.engine.job import Job
from raylm.engine.protocol import Chunk
from raylm.engine.sampler import Sampled
from raylm.errors import RaylmError, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave: chunks, texts encoded, and requests that ended with an error instead."""

    chunks: list[Chunk] = field(default_factory=list)
    failed: list[tuple[str, RaylmError]] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)


class Runner(Protocol):
    """The jobs of one model. Called from one thread, but for the counts."""

    @property
    def num_running(self) -> int:
        """Jobs with a place in the batch."""
        ...

    @property
    def num_waiting(self) -> int:
        """Jobs without one."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the key-value cache; 0 where it is not paged."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Those that nobody uses."""
        ...

    @property
    def num_queried_tokens(self) -> int:
        """Tokens looked up in the prefix cache so far; 0 where there is none."""
        ...

    @property
    def num_found_tokens(self) -> int:
        """Those of them that were there."""
        ...

    @property
    def num_guessed_tokens(self) -> int:
        """Tokens that speculation guessed so far; 0 where there is none."""
        ...

    @property
    def num_confirmed_tokens(self) -> int:
        """Those of them that were right."""
        ...

    def add(self, job: Job) -> None:
        """Queue a job, of a kind that the capabilities name."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a job and free what it holds."""
        ...

    def step(self, now_s: float) -> StepResult:
        """Bring answers a token or more further, or encode a batch; `now_s` is Unix time."""
        ...

    def abandon(self) -> list[str] | None:
        """After `step` raised: forget the jobs that are to blame, and say which.

        None: that is not clear yet, and the next steps are there to find out.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def taken(answer: Answer, sampled: Sampled | RaylmError) -> Chunk | RaylmError:
    """The chunk of a sampled token; an answer that breaks over it does so alone."""
    if isinstance(sampled, RaylmError):
        return sampled
    try:
        return answer.take(sampled)
    except Exception as error:
        log.exception("request %s failed after its token was drawn", answer.id)
        return step_error(error)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk of those that an answer got in one step."""
    if len(chunks) == 1:
        return chunks[0]
    return replace(
        chunks[0],
        token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        text="".join(chunk.text for chunk in chunks),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        finish_reason=chunks[-1].finish_reason,
    )


def step_error(error: Exception) -> RaylmError:
    """The end of a request that an engine could not bring a token further."""
    code = error.code if isinstance(error, RaylmError) else "engine-step-failed"
    return RaylmError(f"the engine's step failed: {error}", code=code)


def deadline_error(request_id: str) -> RaylmError:
    """The end of a request that waited longer than its client does."""
    return RequestError(
        f"request {request_id} was still waiting when its deadline passed",
        code="deadline_exceeded",
        status=504,
    )
