"""Whoever leaves frees the engine at once; whoever stalls, sending or reading, at a deadline."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from raylm.config.serve import LimitsConfig


class Client:
    """An ASGI client that can leave in the middle, send too little, or take too little."""

    def __init__(
        self,
        app: Any,
        path: str,
        body: dict[str, Any],
        *,
        takes: int | None = None,
        sends_all: bool = True,
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self._takes = takes
        self._sends_all = sends_all
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
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % (len(self._raw[0]) + (not sends_all))),
            ],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._raw:
            more = not self._sends_all
            return {"type": "http.request", "body": self._raw.pop(), "more_body": more}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if len(self.sent) == self._takes:
            await asyncio.Event().wait()  # as a server does whose buffer is full
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


@pytest.mark.parametrize("n", [1, 3])
def test_client_that_takes_nothing_is_cut_off_and_its_answers_cancelled(serve_here, n):
    served = serve_here(limits=LimitsConfig(stall_timeout_s=0.05), step_s=0.01)
    aborted = 'raylm_requests_aborted_total{gateway="g1",model="tiny",route="completions"} 1.0'

    async def run() -> None:
        body = BODY | {"stream": True, "n": n}
        client = Client(served.client.app, "/v1/completions", body, takes=4)
        await asyncio.wait_for(client.task, 2)
        assert len(client.sent) == 4 and client.sent[-1]["more_body"]
        assert len(served.engine.cancelled) == n and served.engine.running == {}
        assert served.engine.generated < n * BODY["max_tokens"]
        assert served.gateway.admission.in_flight == 0

    asyncio.run(run())
    assert aborted in served.client.get("/metrics").text


def test_deadline_ends_a_stream_that_nobody_reads(serve_here):
    limits = LimitsConfig(request_timeout_s=0.1, stall_timeout_s=0.3)
    served = serve_here(limits=limits, step_s=0.01)

    async def run() -> None:
        body = BODY | {"stream": True}
        client = Client(served.client.app, "/v1/completions", body, takes=4)
        await asyncio.wait_for(client.task, 2)
        assert served.engine.running == {} and served.gateway.admission.in_flight == 0

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


def test_leaving_in_the_middle_of_the_body_is_no_defect(serve_here, caplog):
    served = serve_here()

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY, sends_all=False)
        await asyncio.sleep(0.05)
        assert not client.task.done()
        client.left.set()
        await asyncio.wait_for(client.task, 1)

    asyncio.run(run())
    assert served.engine.seen == [] and caplog.records == []
    text = served.client.get("/metrics").text
    assert 'status_class="4xx"} 1.0' in text and 'status_class="5xx"' not in text


def test_slow_bodies_take_no_place_and_the_oldest_gives_way(serve_here):
    served = serve_here(capacity=3)

    async def run() -> None:
        app = served.client.app
        slow = [Client(app, "/v1/completions", BODY, sends_all=False) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert served.gateway.admission.in_flight == 0
        quick = Client(app, "/v1/completions", BODY)
        await asyncio.wait_for(quick.task, 2)
        assert quick.sent[0]["status"] == 200
        await asyncio.wait_for(slow[0].task, 2)
        assert slow[0].sent[0]["status"] == 408
        assert (b"connection", b"close") in slow[0].sent[0]["headers"]
        assert [each.task.done() for each in slow] == [True, False, False]
        for each in slow[1:]:
            each.left.set()
            await each.task

    asyncio.run(run())


def test_slow_body_is_refused_at_its_deadline(serve_here):
    served = serve_here(limits=LimitsConfig(body_timeout_s=0.1))

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY, sends_all=False)
        await asyncio.wait_for(client.task, 2)
        assert client.sent[0]["status"] == 408 and b"0.1 s" in client.sent[1]["body"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models", 401), ("/v1/completions", 401), ("/nowhere", 401)]
)
def test_refusal_before_the_body_ends_the_connection(serve_here, path, status):
    served = serve_here(keys=("sk-test-0123456789abcdef",))

    async def run() -> None:
        client = Client(served.client.app, path, BODY, sends_all=False)
        await asyncio.wait_for(client.task, 2)
        assert client.sent[0]["status"] == status
        assert (b"connection", b"close") in client.sent[0]["headers"]

    asyncio.run(run())


def test_answer_to_a_whole_request_keeps_the_connection(serve_here):
    served = serve_here()

    async def run() -> None:
        client = Client(served.client.app, "/v1/completions", BODY | {"max_tokens": 0})
        await asyncio.wait_for(client.task, 2)
        assert client.sent[0]["status"] == 400
        assert b"connection" not in dict(client.sent[0]["headers"])

    asyncio.run(run())


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
