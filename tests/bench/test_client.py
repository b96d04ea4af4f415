"""One request against a real server: what is written down of answers, whole and broken."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from raylm.bench.client import Client, clock
from raylm.bench.record import Draft, Record
from raylm.errors import ConfigError, HostError, RequestError
from tests.bench.server import Answer

BODY = json.dumps({"model": "tiny", "prompt": "x"}).encode()


def ask(url: str, path: str = "completions", timeout_s: float = 30.0, **client) -> Record:
    async def one() -> Record:
        async with Client(url, timeout_s=timeout_s, **client) as opened:
            begun = clock()
            draft = Draft(0, "measured", 0.0, begun)
            await opened.ask(path, BODY, draft)
            return draft.finished(clock())

    return asyncio.run(one())


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_whole_answer(serve, path: str) -> None:
    found = ask(serve(Answer(wait_s=0.2, gap_s=0.05, pieces=5, tokens=9)).url, path)
    assert found.failure is None
    assert (found.prompt_tokens, found.completion_tokens, found.num_tokens) == (7, 9, 9)
    assert len(found.chunks_at_s) == 5
    # What the server waited is the least; how much slower the machine is, nobody knows.
    assert found.ttft_s - found.sent_at_s >= 0.2
    assert all(b > a for a, b in zip(found.chunks_at_s, found.chunks_at_s[1:], strict=False))
    assert found.chunks_at_s[-1] - found.sent_at_s >= 0.2 + 4 * 0.05
    assert found.tpot_s == pytest.approx((found.chunks_at_s[-1] - found.chunks_at_s[0]) / 8)
    assert found.ended_at_s >= found.chunks_at_s[-1]


@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("split", [1, 2, 7, 64, 10_000])
def test_events_may_be_split_anywhere(serve, split: int, eol: str) -> None:
    found = ask(serve(Answer(pieces=3, tokens=3, split=split, eol=eol)).url, "chat/completions")
    assert found.failure is None
    assert (len(found.chunks_at_s), found.completion_tokens) == (3, 3)


def test_without_usage_pieces_are_counted(serve) -> None:
    found = ask(serve(Answer(pieces=6)).url)
    assert found.failure is None
    assert (found.prompt_tokens, found.completion_tokens, found.num_tokens) == (None, None, 6)


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (Answer(status=400), "http 400", '{"error": "no"}'),
        (Answer(status=401), "http 401", '{"error": "no"}'),
        (Answer(status=500, raw=b"oh"), "http 500", "oh"),
        (Answer(status=307, headers=((b"location", b"/"),)), "http 307", '{"error": "no"}'),
        (Answer(status=429), "refused 429", '{"error": "no"}'),
        (Answer(status=503, headers=((b"retry-after", b"1"),)), "refused 503", '{"error": "no"}'),
        (Answer(is_done=False), "broken stream", "the stream ended without [DONE]"),
        (Answer(is_done=False, is_finished=False), "broken stream", "without [DONE]"),
        (Answer(is_finished=False), "broken stream", "[DONE] without a finish_reason"),
        (Answer(is_done=False, is_finished=False, is_whole=False), "broken stream", ""),
        (Answer(pieces=0, is_done=False, is_finished=False, is_whole=False), "broken stream", ""),
        (Answer(error="out of memory"), "broken stream", "out of memory"),
        (Answer(raw=b'data: {"choices": [\n\n'), "broken stream", "not an event"),
        (Answer(raw=b"data: [1]\n\n"), "broken stream", "not an event"),
        (Answer(raw=b'data: {"choices": [], "usage": 3}\n\n'), "broken stream", "not an event"),
        (Answer(raw=b'{"choices": [{"text": "no stream"}]}'), "broken stream", "without [DONE]"),
        (Answer(raw=b"data: " + b"x" * 2**22), "broken stream", ""),
        (Answer(raw=b""), "broken stream", "without [DONE]"),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_a_class(serve, answer: Answer, failure: str, detail: str) -> None:
    server = serve(answer)
    found = ask(server.url)
    assert found.failure == failure
    assert detail in (found.detail or "")
    assert len(server.bodies) == 1  # nothing is sent twice


def test_an_answer_that_takes_too_long_is_a_timeout_and_its_server_is_left(serve) -> None:
    server = serve(Answer(wait_s=30.0))
    found = ask(server.url, timeout_s=0.2)
    assert found.failure == "timeout"
    assert found.e2e_s >= 0.2


def test_a_broken_answer_keeps_the_pieces_that_came(serve) -> None:
    found = ask(serve(Answer(pieces=3, is_done=False, is_finished=False, is_whole=False)).url)
    assert len(found.chunks_at_s) == 3


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = ask(f"http://127.0.0.1:{port}/v1")
    assert (found.failure, found.chunks_at_s) == ("connect", ())
    assert found.sent_at_s is not None


def test_key_and_headers_are_sent(serve) -> None:
    server = serve()
    ask(server.url, key="sk-1", headers={"X-Tenant": "a"})
    assert server.headers[0][b"authorization"] == b"Bearer sk-1"
    assert server.headers[0][b"x-tenant"] == b"a"


def only_model(url: str) -> str:
    async def one() -> str:
        async with Client(url) as client:
            return await client.only_model()

    return asyncio.run(one())


def test_the_only_model_is_found_and_of_several_none_is_taken(serve) -> None:
    server = serve()
    assert only_model(server.url) == "tiny"
    server.models = {"tiny": "tiny", "tiny-0123": "tiny"}
    assert only_model(server.url) == "tiny"
    server.models = {"a": "/models/a", "b": "/models/b"}
    with pytest.raises(ConfigError, match="serves a, b"):
        only_model(server.url)
    server.models = {}
    with pytest.raises(ConfigError, match="serves nothing"):
        only_model(server.url)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(status=401), "answers 401"),
        (Answer(raw=b"<html>"), "no list of models"),
        (Answer(raw=b'{"data": [1]}'), "no list of models"),
    ],
)
def test_what_is_no_list_of_models_is_told(serve, answer: Answer, told: str) -> None:
    server = serve()
    server.list_models = answer
    with pytest.raises(RequestError, match=told):
        only_model(server.url)


def test_an_endpoint_that_is_not_there_is_told() -> None:
    with pytest.raises(HostError, match="nothing answers"):
        only_model("http://127.0.0.1:9/v1")
