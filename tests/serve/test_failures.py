"""Hostile and mistaken requests: the right status, OpenAI's shape, never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raylm.config.serve import LimitsConfig

URL = "/v1/completions"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
GOOD = {"model": "tiny", "prompt": "the fox", "max_tokens": 2}


def error_of(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"model": "tiny",', "line 1, column 18"),
        (b"", "line 1, column 1"),
        (b"[]", "an array"),
        (b"42", "a number"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"true", "a boolean"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": -Infinity}', "-Infinity"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "\xff"}', "UTF-8 at byte 12"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not usable"),
    ],
)
def test_malformed_bodies_are_400_and_say_where(serve_here, raw, says):
    answer = serve_here().client.post(URL, content=raw, headers=JSON)
    assert answer.status_code == 400
    assert says in error_of(answer)["message"]


def test_wrong_content_type(serve_here):
    client = serve_here().client
    answer = client.post(URL, content=json.dumps(GOOD), headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in error_of(answer)["message"]
    answer = client.post(URL, content=b"x", headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_while_reading(serve_here, chunked):
    read = []

    def parts() -> Any:
        for _ in range(64):
            read.append(1)
            yield b" " * 1024

    client = serve_here(limits=LimitsConfig(max_body_bytes=4096)).client
    content = parts() if chunked else b" " * 65536
    answer = client.post(URL, content=content, headers=JSON)
    assert answer.status_code == 413 and error_of(answer)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 3}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**20]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include": True}}, "stream_options.include"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"temperature": 1e308}, "temperature"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_bad_values_are_400_and_name_the_parameter(serve_here, change, param):
    answer = serve_here().client.post(URL, json=GOOD | change)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "sugar": 1}]}, "messages.0.sugar"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_bad_chats_are_400(serve_here, change, param):
    good = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    answer = serve_here().client.post(CHAT, json=good | change)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_image_parts_are_refused_by_kind(serve_here):
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    messages = [{"role": "user", "content": [part]}]
    answer = serve_here().client.post(CHAT, json={"model": "tiny", "messages": messages})
    assert answer.status_code == 400 and "'image_url'" in error_of(answer)["message"]


def test_unknown_field_offers_the_nearest(serve_here):
    error = error_of(serve_here().client.post(URL, json=GOOD | {"temprature": 0.5}))
    assert error["message"] == "unknown field 'temprature'; did you mean 'temperature'?"
    assert error["param"] == "temprature"


def test_neutral_values_of_unsupported_fields_pass(serve_here):
    neutral = {"best_of": 1, "logit_bias": {}, "suffix": None, "user": "u", "metadata": {"a": "b"}}
    assert serve_here().client.post(URL, json=GOOD | neutral).status_code == 200
    chat = {"tools": [], "response_format": {"type": "text"}, "parallel_tool_calls": True}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    good = {"model": "tiny", "messages": messages, "max_tokens": 1}
    assert serve_here().client.post(CHAT, json=good | chat).status_code == 200


def test_unknown_model_is_404_with_the_known_names(serve_here):
    answer = serve_here().client.post(URL, json=GOOD | {"model": "tinny"})
    error = error_of(answer)
    assert answer.status_code == 404 and error["code"] == "model_not_found"
    assert "'tiny'" in error["message"]
    assert serve_here().client.get("/v1/models/../../etc/passwd").status_code == 404
    assert serve_here().client.get("/v1/models/%2e%2e%2fetc").json()["error"]["param"] == "model"


def test_too_long_prompts_name_both_numbers(serve_here):
    answer = serve_here().client.post(URL, json=GOOD | {"prompt": [5] * 200})
    error = error_of(answer)
    assert error["code"] == "context_length_exceeded"
    assert "127" in error["message"] and "200" in error["message"]
    answer = serve_here().client.post(URL, json=GOOD | {"prompt": [5] * 100, "max_tokens": 50})
    error = error_of(answer)
    assert "128" in error["message"] and "150" in error["message"]


def test_text_that_cannot_fit_is_refused_before_tokenising(serve_here):
    served = serve_here()
    tokenizer = served.gateway.catalog.find("tiny").tokenizer
    tokenizer._encode = None  # would fail if it were called
    answer = served.client.post(URL, json=GOOD | {"prompt": "x" * 100_000})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"


def test_default_length_shrinks_to_the_room_there_is(serve_here):
    served = serve_here()
    body = {"model": "tiny", "prompt": [5] * 120}
    assert served.client.post(URL, json=body).json()["usage"]["completion_tokens"] == 8


def test_unknown_routes_and_methods_have_the_shape(serve_here):
    client = serve_here().client
    for path in ("/", "/docs", "/openapi.json", "/v1/embeddings", "/v1/completions/"):
        answer = client.post(path, json={})
        assert answer.status_code == 404 and error_of(answer)["code"] == "not_found"
    answer = client.get(URL)
    assert answer.status_code == 405 and error_of(answer)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_defects_of_ours_do_not_show_their_insides(serve_here):
    served = serve_here()
    served.gateway.catalog._by_name = None
    answer = served.client.post(URL, json=GOOD)
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error" and "NoneType" not in answer.text
