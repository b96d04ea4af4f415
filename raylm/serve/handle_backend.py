"""The backend of a deployed model: its engine replicas behind a Ray Serve handle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)

from raylm.engine.encode import (
    Classification,
    ClassifyRequest,
    Embedding,
    EmbedRequest,
    EncodeRequest,
)
from raylm.engine.protocol import Capabilities, Chunk, Request
from raylm.errors import RequestError
from raylm.serve.backend import ReplicaState
from raylm.serve.everyone import ask_all
from raylm.serve.failover import (
    Cause,
    OtherWeights,
    ReplicaLost,
    RetryBudget,
    continued,
    repeated,
)
from raylm.serve.failure import not_ready, overloaded
from raylm.serve.rotation import ROTATION, Leg, nothing
from raylm.serve.transport import unpack


class HandleBackend:
    """Engine replicas behind a Ray Serve deployment handle.

    A replica that sends nothing for `silence_s` while it works on an answer is taken for
    frozen, and the answer goes on elsewhere. `start_s` is how long a request may wait for the
    first replica of a model that has none at the moment.
    """

    def __init__(
        self,
        model: str,
        handle: Any,
        budget: RetryBudget,
        *,
        silence_s: float,
        start_s: float,
        on_lost: Callable[[str, Cause], None],
    ) -> None:
        self._model = model
        # gRPC between replicas: a third of the CPU time per chunk of Ray's object streams.
        self._handle = handle.options(_by_reference=False)
        self._stream = self._handle.generate.options(stream=True, response_serialization="pickle")
        self._budget = budget
        self._silence_s = silence_s
        self._start_s = start_s
        self._on_lost = on_lost
        self._embed = self._handle.embed.options(response_serialization="pickle")
        self._classify = self._handle.classify.options(response_serialization="pickle")
        self._capabilities: Capabilities | None = None

    async def generate(self, request: Request) -> AsyncGenerator[Sequence[Chunk], None]:
        """Stream an answer, by another replica where one is lost."""
        answer = continued(
            request,
            self._attempt,
            self._budget,
            on_lost=lambda cause: self._on_lost(self._model, cause),
        )
        try:
            async for chunks in answer:
                yield chunks
        finally:
            await answer.aclose()

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector, by another replica where one is lost."""
        found: Embedding = await self._once(self._embed, request)
        return found

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class for a text, by another replica where one is lost."""
        found: Classification = await self._once(self._classify, request)
        return found

    async def capabilities(self) -> Capabilities:
        """What the engine can do; asked once."""
        if self._capabilities is None:
            try:
                async with asyncio.timeout(self._start_s):
                    self._capabilities = await self._handle.capabilities.remote()
            except (TimeoutError, RayError, RayServeException) as error:
                raise not_ready(self._model) from error
        return self._capabilities

    async def states(self) -> list[ReplicaState]:
        """Ask every replica; those that do not answer are not in the list."""
        found = await ask_all(self._handle, "state")
        return [state for state in found if isinstance(state, ReplicaState)]

    async def _attempt(
        self, request: Request, avoid: frozenset[str]
    ) -> AsyncGenerator[Sequence[Chunk], None]:
        """One replica's part of an answer."""
        leg = Leg(avoid)
        with _under_way(request.id, leg):
            response = self._stream.remote(request)
            over = False
            try:
                while (packed := await self._next(response, leg)) is not None:
                    ROTATION.heard(leg.replica)
                    if packed:  # else a sign of life
                        yield unpack(request.id, packed)
                over = True
            except ReplicaLost as lost:
                over = lost.cause == "died"  # there is nobody left to tell
                raise
            finally:
                if not over:
                    response.cancel()

    async def _once(self, method: Any, request: EncodeRequest) -> Any:
        """The result for a text; how long it may take is the caller's to know."""

        async def attempt(avoid: frozenset[str]) -> Any:
            leg = Leg(avoid)
            with _under_way(request.id, leg):
                response = method.remote(request)
                try:
                    found = await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
                except RayActorError as error:
                    raise self._lost("died", leg) from error
                except Exception as error:
                    raise self._explain(error, leg) from error
                ROTATION.heard(leg.replica)
                return found

        return await repeated(
            request.id,
            attempt,
            self._budget,
            on_lost=lambda cause: self._on_lost(self._model, cause),
        )

    async def _next(self, response: Any, leg: Leg) -> Any:
        """The next message of a replica; None after the last.

        Raises:
            ReplicaLost: it died, broke, or is silent for too long.
            OtherWeights: it may not go on with this answer.
            RequestError: the request is refused.
        """
        loop = asyncio.get_running_loop()
        waits = leg.replica is None
        try:
            async with asyncio.timeout(None if waits else self._silence_s) as patience:
                if waits:
                    leg.on_wait = lambda: patience.reschedule(None)
                    leg.on_sent = lambda: patience.reschedule(loop.time() + self._silence_s)
                return await anext(response, None)
        except TimeoutError:
            raise self._lost("silent", leg) from None
        except RayActorError as error:
            raise self._lost("died", leg) from error
        except Exception as error:
            raise self._explain(error, leg) from error
        finally:
            leg.on_wait = leg.on_sent = nothing

    def _explain(self, error: Exception, leg: Leg) -> RequestError | ReplicaLost | OtherWeights:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RequestError):
            if cause.code == "cancelled":  # a text whose engine was closed
                return ReplicaLost("broken", leg.replica)
            if cause.code == "model-replaced":
                return OtherWeights(leg.replica)
            return cause
        if isinstance(cause, BackPressureError):
            return overloaded()
        if isinstance(cause, DeploymentUnavailableError):
            return not_ready(self._model)
        return ReplicaLost("broken", leg.replica)

    def _lost(self, cause: Cause, leg: Leg) -> ReplicaLost:
        if leg.replica is not None:
            ROTATION.lose(leg.replica, time.monotonic())
        return ReplicaLost(cause, leg.replica)


@contextmanager
def _under_way(request_id: str, leg: Leg) -> Iterator[None]:
    ROTATION.legs[request_id] = leg
    try:
        yield
    finally:
        del ROTATION.legs[request_id]
