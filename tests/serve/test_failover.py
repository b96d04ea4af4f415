"""Answers that outlive replicas: real engines' protocol, replicas that are lost on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from raylm.engine.protocol import Chunk, FinishReason, Request, Sampling, TokenLogprob
from raylm.errors import RequestError
from raylm.serve import failover
from raylm.serve.failover import MAX_LOSSES, ReplicaLost, RetryBudget, continued, repeated

NUM_TOKENS = 8
REQUEST = Request("r", (1, 2, 3), Sampling(max_tokens=NUM_TOKENS, seed=5))
WHOLE = [100 + position for position in range(NUM_TOKENS)]


@dataclass
class Replicas:
    """Each attempt emits the tokens 100 + position; `lives[i]` is how many the i-th gets out."""

    lives: Sequence[int | None]
    """None: to the end."""
    end: FinishReason | None = "length"
    seen: list[tuple[Request, frozenset[str]]] = field(default_factory=list)
    open: int = 0

    async def attempt(
        self, request: Request, avoid: frozenset[str]
    ) -> AsyncGenerator[Sequence[Chunk], None]:
        number = len(self.seen)
        self.seen.append((request, avoid))
        life = self.lives[min(number, len(self.lives) - 1)]
        self.open += 1
        try:
            for position in range(len(request.emitted_ids), NUM_TOKENS):
                if life == 0:
                    raise ReplicaLost("died", f"replica-{number}")
                life = None if life is None else life - 1
                reason = self.end if position == NUM_TOKENS - 1 else None
                yield [Chunk(request.id, position, (100 + position,), "x", (), reason)]
        finally:
            self.open -= 1


def answer(replicas: Replicas, request: Request = REQUEST, budget: float = 10) -> list[Chunk]:
    async def read() -> list[Chunk]:
        chunks: list[Chunk] = []
        async for some in continued(request, replicas.attempt, RetryBudget(budget)):
            chunks += some
        return chunks

    return asyncio.run(read())


def tokens(chunks: Sequence[Chunk]) -> list[int]:
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.mark.parametrize("life", range(1, NUM_TOKENS))
def test_a_lost_replica_leaves_no_gap_and_no_repeat(life: int) -> None:
    replicas = Replicas([life, None])
    chunks = answer(replicas)
    assert tokens(chunks) == WHOLE and chunks[-1].finish_reason == "length"
    (_, first_avoids), (second, second_avoids) = replicas.seen
    assert second.emitted_ids == tuple(WHOLE[:life])
    assert (first_avoids, second_avoids) == (frozenset(), {"replica-0"})
    assert replicas.open == 0


def test_a_prompts_logprobs_are_asked_for_until_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may come before a token does, and then the next replica must not send them again."""
    scores = (None, TokenLogprob(2, -1.0), TokenLogprob(3, -2.0))
    asked: list[int | None] = []

    async def attempt(
        request: Request, avoid: frozenset[str]
    ) -> AsyncGenerator[Sequence[Chunk], None]:
        asked.append(request.sampling.num_prompt_logprobs)
        if len(asked) == 1:
            raise ReplicaLost("died", "replica-0")
        if asked[-1] is not None:
            yield [Chunk(request.id, 0, prompt_logprobs=scores)]
            raise ReplicaLost("died", "replica-1")
        yield [Chunk(request.id, 0, (100,), "x", (), "length")]

    async def read() -> list[Chunk]:
        request = replace(REQUEST, sampling=replace(REQUEST.sampling, num_prompt_logprobs=0))
        found = continued(request, attempt, RetryBudget(10))
        return [chunk async for some in found for chunk in some]

    monkeypatch.setattr(failover, "MAX_LOSSES", 3)
    chunks = asyncio.run(read())
    assert asked == [0, 0, None]
    assert [chunk.prompt_logprobs for chunk in chunks] == [scores, ()]


def test_any_number_of_replicas_may_be_lost_while_the_answer_gets_on() -> None:
    replicas = Replicas([1])
    assert tokens(answer(replicas)) == WHOLE
    assert len(replicas.seen) == NUM_TOKENS
    assert len({request.id for request, _ in replicas.seen}) == NUM_TOKENS


def test_a_request_that_breaks_every_replica_is_given_up() -> None:
    replicas = Replicas([3, 0])
    with pytest.raises(RequestError) as caught:
        answer(replicas)
    assert (caught.value.status, caught.value.code) == (500, "engine-failed")
    # Three tokens, a loss, and then only losses.
    assert len(replicas.seen) == MAX_LOSSES
    assert isinstance(caught.value.__cause__, ReplicaLost)


def test_no_continuation_starts_when_the_budget_is_spent() -> None:
    replicas = Replicas([1])
    with pytest.raises(RequestError, match="request r"):
        answer(replicas, budget=2)
    assert len(replicas.seen) == 3


def test_an_engine_that_is_closed_under_an_answer_is_a_loss() -> None:
    replicas = Replicas([None, None], end="cancelled")
    with pytest.raises(RequestError):
        answer(replicas)
    # The rest, twice: all tokens but the last were there, and that one came with the end.
    assert [request.emitted_ids for request, _ in replicas.seen] == [(), tuple(WHOLE[:-1])]


def test_a_stream_that_ends_without_an_end_is_a_loss() -> None:
    replicas = Replicas([None], end=None)
    with pytest.raises(RequestError):
        answer(replicas)
    assert replicas.seen[1][0].emitted_ids == tuple(WHOLE)


def test_a_refusal_is_passed_on_and_not_repeated() -> None:
    seen = []

    async def refuse(
        request: Request, avoid: frozenset[str]
    ) -> AsyncGenerator[Sequence[Chunk], None]:
        seen.append(request.id)
        raise RequestError("too long", code="context-length-exceeded")
        yield []

    async def read() -> None:
        async for _ in continued(REQUEST, refuse, RetryBudget(10)):
            pass

    with pytest.raises(RequestError, match="too long"):
        asyncio.run(read())
    assert seen == ["r.0"]


def test_closing_early_closes_the_attempt() -> None:
    replicas = Replicas([None])

    async def look() -> int:
        stream = continued(REQUEST, replicas.attempt, RetryBudget(10))
        async for _ in stream:
            break
        assert replicas.open == 1
        await stream.aclose()
        return replicas.open

    assert asyncio.run(look()) == 0


def test_losses_are_reported_with_their_cause() -> None:
    causes: list[str] = []

    async def read() -> None:
        stream = continued(
            REQUEST, Replicas([2, 2, None]).attempt, RetryBudget(10), on_lost=causes.append
        )
        async for _ in stream:
            pass

    asyncio.run(read())
    assert causes == ["died", "died"]


def test_the_budget_is_a_share_of_the_answers_and_one_loss_of_all() -> None:
    budget = RetryBudget(4, ratio=0.2)
    assert [budget.spend() for _ in range(5)] == [True] * 4 + [False]
    for _ in range(5):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(5)] == [True] * 4 + [False]


def repeat(outcomes: list[Exception | str], budget: float = 10) -> tuple[str, list[frozenset[str]]]:
    """What a text's attempts come to, and what each was to avoid."""
    avoided: list[frozenset[str]] = []

    async def attempt(avoid: frozenset[str]) -> str:
        outcome = outcomes[len(avoided)]
        avoided.append(avoid)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return asyncio.run(repeated("t", attempt, RetryBudget(budget))), avoided


def test_a_text_goes_to_another_replica_where_its_own_is_lost() -> None:
    found, avoided = repeat([ReplicaLost("died", "a"), "vector"])
    assert (found, avoided) == ("vector", [frozenset(), {"a"}])


@pytest.mark.parametrize(("budget", "num_left"), [(10, 1), (0.5, 2)])
def test_a_text_that_loses_too_many_is_given_up(budget: float, num_left: int) -> None:
    outcomes: list[Exception | str] = [ReplicaLost("broken", name) for name in "abc"]
    with pytest.raises(RequestError) as caught:
        repeat(outcomes, budget)
    assert caught.value.code == "engine-failed"
    lost = caught.value.__cause__
    assert isinstance(lost, ReplicaLost) and lost.replica == "abc"[2 - num_left]


def test_a_text_that_is_refused_is_not_repeated() -> None:
    with pytest.raises(RequestError, match="too long"):
        repeat([RequestError("too long", code="context-length-exceeded"), "vector"])
