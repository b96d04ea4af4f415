"""Disconnects: whoever leaves frees the engine at once, with a stream and without."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest


class Client:
    """An ASGI client that can leave in the middle."""

    def __init__(self, app: Any, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self._raw = [json.dumps(body).encode()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._raw:
            return {"type": "http.request", "body": self._raw.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def until(self, num_messages: int) -> None:
        while len(self.sent) < num_messages:
            await asyncio.sleep(0.005)


BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 100}


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_cancels_its_answers(serve_here, n):
    served = serve_here(step_s=0.01)

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY | {"stream": True, "n": n})
        await client.until(5)
        client.left.set()
        await asyncio.wait_for(client.task, 1)
        assert len(served.engine.cancelled) == n and served.engine.running == {}
        generated = served.engine.generated
        await asyncio.sleep(0.05)
        assert served.engine.generated == generated
        assert served.gateway.admission.in_flight == 0

    asyncio.run(run())


def test_leaving_a_whole_answer_cancels_it(serve_here):
    served = serve_here(step_s=0.01)

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY)
        await asyncio.sleep(0.1)
        assert len(served.engine.running) == 1
        client.left.set()
        await asyncio.wait_for(client.task, 1)
        assert len(served.engine.cancelled) == 1 and served.engine.running == {}
        assert served.gateway.admission.in_flight == 0

    asyncio.run(run())
    text = served.client.get("/metrics").text
    assert 'raylm_requests_aborted_total{gateway="g1",model="tiny",route="completions"} 1.0' in text
    assert 'finish_reason="aborted"' in text


def test_cancellation_of_the_handler_cancels_the_answer(serve_here):
    served = serve_here(step_s=0.01)

    async def run(body: dict[str, Any]) -> None:
        client = Client(served.client.app, "/v1/completions", body)
        await asyncio.sleep(0.1)
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)
        assert served.engine.running == {} and served.gateway.admission.in_flight == 0

    asyncio.run(run(BODY))
    asyncio.run(run(BODY | {"stream": True}))
    assert len(served.engine.cancelled) == 2


def test_broken_stream_has_no_last_body_message(serve_here):
    served = serve_here(fail_at=2)

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY | {"stream": True})
        await asyncio.wait_for(client.task, 1)
        assert all(message.get("more_body", True) for message in client.sent)
        assert b'data: {"error"' in client.sent[-1]["body"]

    asyncio.run(run())


def test_whole_stream_ends_with_a_last_body_message(serve_here):
    served = serve_here()

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY | {"stream": True})
        await asyncio.wait_for(client.task, 1)
        assert client.sent[-1] == {"type": "http.response.body", "body": b"data: [DONE]\n\n"}

    asyncio.run(run())


def test_draining_finishes_what_runs_and_refuses_what_comes(serve_here):
    served = serve_here(step_s=0.01)

    async def run() -> None:
        body = BODY | {"stream": True, "max_tokens": 20}
        client = Client(served.client.app, "/v1/completions", body)
        await client.until(3)
        assert served.gateway.admission.drain() == 1
        late = Client(served.client.app, "/v1/completions", body)
        await late.task
        assert late.sent[0]["status"] == 503
        assert (b"retry-after", b"5") in late.sent[0]["headers"]
        await client.task
        assert client.sent[-1]["body"] == b"data: [DONE]\n\n"
        assert served.gateway.admission.drain() == 0

    asyncio.run(run())
    assert served.client.get("/readyz").status_code == 503
