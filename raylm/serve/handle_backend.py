"""The backend of a deployed model: its engine replicas behind a Ray Serve handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)

from raylm.engine.protocol import Capabilities, Chunk, Request
from raylm.errors import RequestError
from raylm.serve.backend import ReplicaState
from raylm.serve.failure import engine_failed, not_ready, overloaded
from raylm.serve.transport import unpack

STATE_TIMEOUT_S = 2.0


class HandleBackend:
    """Engine replicas behind a Ray Serve deployment handle."""

    def __init__(self, model: str, handle: Any) -> None:
        self._model = model
        # gRPC between replicas: a third of the CPU time per chunk of Ray's object streams.
        self._handle = handle.options(_by_reference=False)
        self._stream = self._handle.generate.options(stream=True, response_serialization="pickle")
        self._capabilities: Capabilities | None = None

    async def generate(self, request: Request) -> AsyncGenerator[Sequence[Chunk], None]:
        """Stream an answer."""
        response = self._stream.remote(request)
        finished = False
        try:
            async for packed in response:
                yield unpack(request.id, packed)
            finished = True
        except Exception as error:
            finished = not isinstance(error, RayActorError)
            raise self._explain(error, request.id) from error
        finally:
            if not finished:
                response.cancel()

    async def capabilities(self) -> Capabilities:
        """What the engine can do; asked once."""
        if self._capabilities is None:
            try:
                async with asyncio.timeout(STATE_TIMEOUT_S):
                    self._capabilities = await self._handle.capabilities.remote()
            except (TimeoutError, RayError, RayServeException) as error:
                raise not_ready(self._model) from error
        return self._capabilities

    async def states(self) -> list[ReplicaState]:
        """Ask every replica; those that do not answer are not in the list."""
        try:
            found = await self._handle.broadcast("state").results_async(
                timeout_s=STATE_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, RayError, RayServeException):
            return []
        return [state for state in found if isinstance(state, ReplicaState)]

    def _explain(self, error: Exception, request_id: str) -> RequestError:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RequestError):
            return cause
        if isinstance(cause, BackPressureError):
            return overloaded()
        if isinstance(cause, DeploymentUnavailableError):
            return not_ready(self._model)
        return engine_failed(request_id)
