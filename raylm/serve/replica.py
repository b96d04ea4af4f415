"""EngineReplica: one engine in a Ray Serve replica."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from raylm.config.engine import EngineConfig
from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest
from raylm.engine.load import load
from raylm.engine.protocol import Capabilities, Chunk, Request
from raylm.errors import RaylmError
from raylm.serve.backend import ReplicaState, state_of
from raylm.serve.beside import answer_beside_requests
from raylm.serve.catalog import ServedModel
from raylm.serve.failure import model_replaced
from raylm.serve.gather import batched
from raylm.serve.listen import listen_on_node_address
from raylm.serve.transport import Packed, pack

SIGN_OF_LIFE_S = 1.0
"""A replica that works on an answer is never silent for longer, unless it is frozen."""


class EngineReplica:
    """Loads a model and answers through handles; knows nothing of HTTP.

    `config` is an EngineConfig as plain values: Serve restarts replicas when the pickled
    arguments differ, and a pickled model holds sets, whose order differs between processes.
    """

    def __init__(self, model: ServedModel, config: Mapping[str, Any], cache_root: Path) -> None:
        listen_on_node_address()
        answer_beside_requests("state")
        # Code from checkpoints is not run, and nothing is fetched, whatever a library defaults to.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self._digest = model.digest
        self._name = serve.get_replica_context().replica_id.unique_id
        try:
            self._engine = load(
                model.path,
                EngineConfig.model_validate(config),
                cache_root=cache_root,
                digest=model.digest,
            )
        except RaylmError as error:
            # Serve shows the driver only text; this line is what `deploy` looks for in it.
            kind = type(error).__name__
            raise RuntimeError(f"{CAUSE}{kind}[{error.code}] {error.message}") from error

    async def generate(self, request: Request) -> AsyncIterator[list[Packed]]:
        """Stream an answer; a cancelled call frees its slot within one step.

        An empty list is a sign of life: the answer is waited for, or being computed.

        Raises:
            RequestError: refused by the engine; or 503, other weights began the answer.
        """
        chunks_of = by_weights(self._digest, request, self._engine.generate)
        async with aclosing(batched(chunks_of, idle_s=SIGN_OF_LIFE_S)) as stream:
            async for chunks in stream:
                yield pack(chunks)

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector; a cancelled call is not worked on any more.

        Raises:
            RequestError: refused by the engine.
        """
        return await self._engine.embed(request)

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class for a text; else as `embed`."""
        return await self._engine.classify(request)

    async def capabilities(self) -> Capabilities:
        """What the engine can do."""
        return self._engine.capabilities()

    async def state(self) -> ReplicaState:
        """How the engine is, for `/readyz` and `/metrics`."""
        return state_of(self._name, self._engine)

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises three times in a row."""
        self._engine.health()

    async def imported(self) -> list[str]:
        """Top-level modules of this process: serving with OpenVINO must do without torch."""
        return sorted({name.partition(".")[0] for name in sys.modules})

    def __del__(self) -> None:
        """Serve calls this at the end of a graceful shutdown."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


async def by_weights(
    digest: str, request: Request, generate: Callable[[Request], AsyncIterator[Chunk]]
) -> AsyncGenerator[Chunk, None]:
    """The chunks of an answer, the first of which says which weights they are from.

    Raises:
        RequestError: 503, others began the answer.
    """
    if request.digest not in ("", digest):
        raise model_replaced(request.id)
    chunks = generate(request)
    said = digest
    try:
        async for chunk in chunks:
            yield replace(chunk, digest=said) if said else chunk
            said = ""
    finally:
        close: Any = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


CAUSE = "raylm: cannot start: "
"""Marks the reason in what Serve reports of a replica that does not start."""
