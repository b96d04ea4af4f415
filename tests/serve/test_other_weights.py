"""A name that is deployed again with other weights: no answer is begun by one and ended by other
weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from raylm.engine.protocol import Chunk, Request, Sampling
from raylm.errors import RequestError
from raylm.serve.failover import OtherWeights, ReplicaLost, RetryBudget, continued
from raylm.serve.replica import by_weights
from tests.serve.fake_engine import FakeEngine, token_at

OLD, NEW = "ab" * 32, "cd" * 32
NUM_TOKENS = 6
REQUEST = Request("r", (5, 6, 7), Sampling(max_tokens=NUM_TOKENS, seed=3))


@pytest.fixture
def engine(model_files: Path) -> FakeEngine:
    return FakeEngine(Tokenizer.from_file(str(model_files / "tokenizer.json")))


@dataclass
class Replicas:
    """Real chunks of replicas with weights of their own; the first dies after two tokens."""

    engine: FakeEngine
    digests: Sequence[str]
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Of each attempt the replica, and the weights that the request is for."""

    async def attempt(
        self, request: Request, avoid: frozenset[str]
    ) -> AsyncGenerator[Sequence[Chunk], None]:
        names = [f"replica-{i}" for i in range(len(self.digests))]
        alive = [name for name in names if not (self.asked and name == names[0])]
        name = next((each for each in alive if each not in avoid), alive[-1])
        self.asked.append((name, request.digest))
        chunks = by_weights(self.digests[names.index(name)], request, self.engine.generate)
        try:
            async for chunk in chunks:
                if len(self.asked) == 1 and chunk.position == 2:
                    raise ReplicaLost("died", name)
                yield [chunk]
        except RequestError as error:
            assert error.code == "model-replaced"
            raise OtherWeights(name) from error
        finally:
            await chunks.aclose()


def read(replicas: Replicas, budget: float = 2) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        found: list[Chunk] = []
        try:
            async for some in continued(REQUEST, replicas.attempt, RetryBudget(budget)):
                found += some
        except RequestError:
            # What was sent stays sent.
            assert [chunk.position for chunk in found] == [0, 1]
            raise
        return found

    return asyncio.run(collect())


def tokens(engine: FakeEngine) -> list[int]:
    return [token_at(3, position, engine.vocab_size) for position in range(NUM_TOKENS)]


def test_an_answer_goes_on_by_the_weights_that_began_it(engine):
    """Replicas with others are passed over, and cost nothing of the budget."""
    replicas = Replicas(engine, [OLD, NEW, NEW, OLD])
    chunks = read(replicas, budget=1)
    assert [chunk.token_ids[0] for chunk in chunks] == tokens(engine)
    assert replicas.asked == [
        ("replica-0", ""), ("replica-1", OLD), ("replica-2", OLD), ("replica-3", OLD),
    ]  # fmt: skip
    # Each replica says it once.
    assert [chunk.digest for chunk in chunks] == [OLD, "", OLD, "", "", ""]


def test_without_such_a_replica_the_answer_ends_with_an_error(engine):
    replicas = Replicas(engine, [OLD, NEW, NEW])
    with pytest.raises(RequestError, match="replaced by other weights") as caught:
        read(replicas)
    assert (caught.value.code, caught.value.status) == ("model-replaced", 503)
    assert caught.value.retry_after_s == 1
    # Each of the others was asked, and one again, as there was no other.
    assert [name for name, _ in replicas.asked[1:]] == ["replica-1", "replica-2", "replica-2"]
    assert not engine.running


def test_an_answer_of_which_nothing_is_sent_may_be_by_any_weights(engine):
    @dataclass
    class Dying(Replicas):
        async def attempt(
            self, request: Request, avoid: frozenset[str]
        ) -> AsyncGenerator[Sequence[Chunk], None]:
            if not self.asked:
                self.asked.append(("replica-0", request.digest))
                raise ReplicaLost("died", "replica-0")
            async for chunks in super().attempt(request, avoid):
                yield chunks

    replicas = Dying(engine, [OLD, NEW])
    assert [chunk.token_ids[0] for chunk in read(replicas)] == tokens(engine)
    assert replicas.asked == [("replica-0", ""), ("replica-1", "")]


def test_weights_without_a_digest_go_on_with_anything_and_say_nothing(engine):
    async def chunks(digest: str) -> list[Chunk]:
        return [chunk async for chunk in by_weights(digest, REQUEST, engine.generate)]

    assert {chunk.digest for chunk in asyncio.run(chunks(""))} == {""}
    assert len(asyncio.run(chunks(OLD))) == NUM_TOKENS


def test_an_answer_that_is_left_is_cancelled_in_the_engine(engine):
    async def leave() -> None:
        stream = by_weights(OLD, REQUEST, engine.generate)
        async for _ in stream:
            break
        assert engine.running
        await stream.aclose()

    asyncio.run(leave())
    assert not engine.running and engine.cancelled == ["r"]
