"""Texts over a Serve handle, with a handle of our own: what is asked again, and what is told."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest
from raylm.engine.protocol import Request, Sampling
from raylm.errors import RequestError
from raylm.serve.failover import RetryBudget
from raylm.serve.failure import model_replaced
from raylm.serve.handle_backend import HandleBackend
from raylm.serve.rotation import ROTATION

REQUEST = EmbedRequest("r", (5, 6))
RESULT = Embedding("r", np.array([0.5, 1.5], np.float32), 2)


class Response:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def __anext__(self) -> Any:
        """The messages of a stream are a list; an exception among them is raised."""
        if not self.outcome:
            raise StopAsyncIteration
        message = self.outcome.pop(0)
        if isinstance(message, Exception):
            raise message
        return [message]

    async def _wait(self) -> Any:
        if self.outcome == "never":
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Stands for the handle and for its methods; gives the outcomes one after the other."""

    def __init__(self, *outcomes: Any) -> None:
        self.responses = [Response(outcome) for outcome in outcomes]
        self.asked: list[Any] = []
        self.avoided: list[frozenset[str]] = []

    def options(self, **options: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Handle:
        if name not in ("generate", "embed", "classify"):
            raise AttributeError(name)
        return self

    def remote(self, request: Any) -> Response:
        """Route as the router does: to replica-0, then replica-1, ..."""
        leg = ROTATION.legs[request.id]
        self.avoided.append(leg.avoid)
        leg.sent(f"replica-{len(self.asked)}")
        self.asked.append(request)
        return self.responses[len(self.asked) - 1]


@pytest.fixture(autouse=True)
def rotation():
    """What one test has lost is in rotation again for the next."""
    yield
    assert not ROTATION.legs
    ROTATION._out_until_s.clear()


def backend_of(handle: Handle, budget: float = 4, lost: list[tuple[str, str]] | None = None):
    told = [] if lost is None else lost
    return HandleBackend(
        "m",
        handle,
        RetryBudget(budget),
        silence_s=5,
        start_s=5,
        on_lost=lambda model, cause: told.append((model, cause)),
    )


@pytest.mark.parametrize(
    ("outcome", "cause", "is_out"),
    [
        (RayActorError(), "died", True),
        (RuntimeError("a step failed"), "broken", False),
        (RequestError("closed", code="cancelled", status=499), "broken", False),
    ],
)
def test_a_text_whose_replica_is_lost_is_given_to_another(outcome, cause, is_out):
    handle, lost = Handle(outcome, RESULT), []
    assert asyncio.run(backend_of(handle, lost=lost).embed(REQUEST)) is RESULT
    assert handle.asked == [REQUEST, REQUEST]
    assert handle.avoided == [frozenset(), {"replica-0"}]
    assert lost == [("m", cause)]
    assert (ROTATION.standing("replica-0").out_until_s > 0) is is_out


def test_no_text_is_repeated_when_the_budget_is_spent():
    handle = Handle(RayActorError(), RESULT)
    with pytest.raises(RequestError) as error:
        asyncio.run(backend_of(handle, budget=0.5).embed(REQUEST))
    assert error.value.code == "engine-failed" and handle.asked == [REQUEST]


@pytest.mark.parametrize(
    ("outcomes", "status", "code"),
    [
        ([RayActorError(), RayActorError()], 500, "engine-failed"),
        ([RuntimeError("secret"), RuntimeError("secret")], 500, "engine-failed"),
        ([BackPressureError(num_queued_requests=1, max_queued_requests=1)], 503, "overloaded"),
        ([DeploymentUnavailableError("x")], 503, "model-not-ready"),
        ([RequestError("no", code="invalid_value")], 400, "invalid_value"),
    ],
)
def test_failures_are_told_as_for_answers(outcomes, status, code):
    handle = Handle(*outcomes)
    with pytest.raises(RequestError) as error:
        asyncio.run(backend_of(handle).classify(ClassifyRequest("r", (5,))))
    assert (error.value.status, error.value.code) == (status, code)
    assert "secret" not in error.value.message and len(handle.asked) == len(outcomes)


def test_a_replica_with_other_weights_is_not_lost():
    """Nothing else is wrong with it: it stays in rotation."""
    first = (0, (5,), "a", (), None, 0, (), "ab")
    second = (1, (6,), "b", (), "length", None, (), "ab")
    handle, lost = Handle([first, RayActorError()], [model_replaced("r.1")], [second]), []

    async def read() -> list[int]:
        request = Request("r", (1,), Sampling(max_tokens=2))
        stream = backend_of(handle, lost=lost).generate(request)
        return [token for some in [s async for s in stream] for c in some for token in c.token_ids]

    assert asyncio.run(read()) == [5, 6]
    assert [request.digest for request in handle.asked] == ["", "ab", "ab"]
    assert handle.avoided == [set(), {"replica-0"}, {"replica-0", "replica-1"}]
    assert lost == [("m", "died")] and ROTATION.standing("replica-1").out_until_s == 0


def test_a_call_that_is_given_up_is_cancelled_at_the_replica():
    handle = Handle("never")

    async def leave() -> None:
        call = asyncio.create_task(backend_of(handle).embed(REQUEST))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(asyncio.wait_for(leave(), 5))
    assert handle.responses[0].cancelled


def test_requests_and_results_survive_the_way_between_processes():
    found = pickle.loads(pickle.dumps(RESULT))
    assert (found.vector == RESULT.vector).all() and found.vector.dtype == np.float32
    kept = [
        REQUEST,
        ClassifyRequest("c", (1,), True),
        Classification("c", ("a", "b"), (0.2, 0.8), 1),
    ]
    assert pickle.loads(pickle.dumps(kept)) == kept
    assert kept[2].label == "b"
