"""Backend: the engine side of one model, as the gateway sees it.

Two kinds: replicas behind a Ray Serve handle, and one engine in this process (for tests, and
for serving without a cluster). The gateway's code knows only this protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest
from raylm.engine.processor import processor_name
from raylm.engine.protocol import Capabilities, Chunk, Engine, Request, Stats
from raylm.errors import RaylmError, RequestError
from raylm.serve.failure import engine_failed
from raylm.serve.gather import batched


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One engine replica at this moment; `problem` says why it cannot work."""

    replica: str
    stats: Stats
    problem: str | None = None
    weights: str = ""
    """Their stored precision."""
    processor: str = ""
    """The model of the machine's processor."""
    tokens_per_cpu_s: float = 0.0
    """As measured on loading; 0: not measured."""


class Backend(Protocol):
    """The engine replicas of one model."""

    def generate(self, request: Request) -> AsyncGenerator[Sequence[Chunk], None]:
        """Stream an answer; chunks that are ready together come together.

        Closing it early cancels the request in the engine.

        Raises:
            RequestError: refused, overloaded, not ready, or the engine failed.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector. Cancelling the task cancels the request in the engine.

        Raises:
            RequestError: refused, overloaded, not ready, or the engine failed.
        """
        ...

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class for a text; else as `embed`."""
        ...

    async def capabilities(self) -> Capabilities:
        """What the model's engine can do.

        Raises:
            RequestError: no replica is ready yet.
        """
        ...

    async def states(self) -> list[ReplicaState]:
        """All replicas that can be reached; empty when there is none."""
        ...


class LocalBackend:
    """One engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, request: Request) -> AsyncGenerator[Sequence[Chunk], None]:
        """Stream an answer."""
        stream = batched(self._engine.generate(request))
        try:
            with _explained(request.id):
                async for chunks in stream:
                    yield chunks
        finally:
            await stream.aclose()

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector."""
        with _explained(request.id):
            return await self._engine.embed(request)

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class for a text."""
        with _explained(request.id):
            return await self._engine.classify(request)

    async def capabilities(self) -> Capabilities:
        """What the engine can do."""
        return self._engine.capabilities()

    async def states(self) -> list[ReplicaState]:
        """The one engine."""
        return [state_of("local", self._engine)]


@contextmanager
def _explained(request_id: str) -> Iterator[None]:
    """Turn whatever an engine raises into what a client may hear."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise engine_failed(request_id) from error


def state_of(replica: str, engine: Engine) -> ReplicaState:
    """Ask an engine how it is."""
    problem = None
    try:
        engine.health()
    except RaylmError as error:
        problem = error.message
    able = engine.capabilities()
    return ReplicaState(
        replica,
        engine.stats(),
        problem,
        able.weights,
        processor_name(),
        able.tokens_per_cpu_s,
    )
