"""What clients say of a call in its headers, and what they are told there."""

from __future__ import annotations

import logging

import pytest

from raylm.config.serve import LimitsConfig
from tests.serve.fake_encoder import FakeEncoder
from tests.serve.test_endpoints import CHAT, URL, body, chat_body

RESPONSES = "/v1/responses"


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_id_comes_back_beside_ours(serve_here, stream):
    client = serve_here().client
    answer = client.post(URL, json=body(stream=stream), headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    own = answer.headers["x-raylm-id"]
    assert f"cmpl-{own}" in answer.text
    without = client.post(URL, json=body(stream=stream))
    assert f"cmpl-{without.headers['x-request-id']}" in without.text
    assert "x-raylm-id" not in without.headers


@pytest.mark.parametrize("stream", [False, True])
def test_failures_carry_it_and_are_logged_with_it(serve_here, stream, caplog):
    caplog.set_level(logging.WARNING, "raylm.serve")
    served = serve_here(fail_at=0)
    answer = served.client.post(URL, json=body(stream=stream), headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine-1"
    assert f"{answer.headers['x-raylm-id']} (mine-1)" in caplog.text


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "\x7f"])
def test_ids_that_logs_cannot_hold_are_refused(serve_here, value):
    answer = serve_here().client.post(URL, json=body(), headers={"x-request-id": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-id"
    assert answer.headers["x-request-id"] != value


@pytest.mark.parametrize("value", ["", "0", "-5", "1.5", "abc", "9" * 10, "٣"])
def test_timeouts_that_are_none_are_refused(serve_here, value):
    headers = {"x-raylm-timeout-ms": value.encode()}
    answer = serve_here().client.post(URL, json=body(), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-raylm-timeout-ms"


@pytest.mark.parametrize(
    ("path", "asked"),
    [(URL, body()), (CHAT, chat_body()), (RESPONSES, {"model": "tiny", "input": "x"})],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_reaches_the_engine_and_ends_the_answer(serve_here, path, asked, stream):
    served = serve_here(step_s=30)
    headers = {"x-raylm-timeout-ms": "50"}
    answer = served.client.post(path, json=asked | {"stream": stream}, headers=headers)
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
    assert "0.05 s" in error["message"]
    (request,) = served.engine.seen
    assert served.engine.cancelled == [request.id]
    far = serve_here(step_s=0)
    far.client.post(path, json=asked, headers={"x-raylm-timeout-ms": "900000"})
    assert 250 < far.engine.seen[0].deadline_s - request.deadline_s <= 301


def test_texts_have_deadlines_too(serve_here):
    served = serve_here(engine_of=FakeEncoder, step_s=30)
    asked = {"model": "tiny", "input": "x"}
    headers = {"x-raylm-timeout-ms": "50"}
    assert served.client.post("/v1/embeddings", json=asked, headers=headers).status_code == 504


def test_what_was_decided_for_the_client_is_said(serve_here):
    limits = LimitsConfig(default_output_tokens=3, request_timeout_s=20)
    served = serve_here(limits=limits)
    answer = served.client.post(URL, json={"model": "tiny", "prompt": "x"})
    request = served.engine.seen[0]
    assert answer.headers["x-raylm-defaults"] == f"max_tokens=3, seed={request.sampling.seed}"
    assert "x-raylm-adjusted" not in answer.headers
    headers = {"x-raylm-timeout-ms": "21000"}
    answer = served.client.post(URL, json=body(), headers=headers)
    assert "x-raylm-defaults" not in answer.headers
    assert answer.headers["x-raylm-adjusted"] == "timeout_ms=20000"
    answer = served.client.post(CHAT, json=chat_body(max_tokens=None, max_completion_tokens=2))
    assert "x-raylm-defaults" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
def test_texts_that_were_cut_are_counted(serve_here, path):
    served = serve_here(engine_of=FakeEncoder)
    texts = [[5] * 20, [5] * 16]
    asked = {"model": "tiny", "truncate": True}
    answer = served.client.post(path, json=asked | {"input": texts})
    assert answer.headers["x-raylm-adjusted"] == "truncated=1"
    assert [len(text.prompt_ids) for text in served.engine.texts] == [16, 16]
    answer = served.client.post(path, json=asked | {"input": ["x " * 20, "x"]})
    assert answer.headers["x-raylm-adjusted"] == "truncated=1"
    answer = served.client.post(path, json=asked | {"input": "x"})
    assert "x-raylm-adjusted" not in answer.headers
