"""Hostile and mistaken requests: the right status, OpenAI's shape, never a 500."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from raylm.config.serve import LimitsConfig
from raylm.errors import RequestError
from raylm.serve.wire import ChatBody

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
        (b"\x00" * 16, "line 1, column 1"),
        (b'{"prompt": "a\x00b"}', "Invalid control character"),
        ("{}".encode("utf-16"), "UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"prompt": "\\ud83d x \\ude00"}', "surrogate"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (json.dumps(dict.fromkeys(map(str, range(10_001)))).encode(), "10001 keys"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply; 200 levels"),
        (b'{"a": ' + b"[" * 199 + b"]" * 199 + b"}", "'model' is missing"),
        (b'{"a": [' + b"[], " * 900 + b"{}]}", "'model' is missing"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not usable"),
    ],
)
def test_malformed_bodies_are_400_and_say_where(serve_here, raw, says):
    answer = serve_here().client.post(URL, content=raw, headers=JSON)
    assert answer.status_code == 400
    assert says in error_of(answer)["message"]


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "text/json", "application/jsonx", "multipart/form-data; x=y"]
)
def test_wrong_content_type(serve_here, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = serve_here().client.post(URL, content=json.dumps(GOOD), headers=headers)
    assert answer.status_code == 400 and "application/json" in error_of(answer)["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x", "gzip, identity"])
def test_packed_bodies_are_refused_and_not_unpacked(serve_here, encoding):
    bomb = gzip.compress(b" " * 2**24)
    assert len(bomb) < 2**15
    headers = {**JSON, "content-encoding": encoding}
    answer = serve_here().client.post(URL, content=bomb, headers=headers)
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_content_encoding"


def test_200_mb_are_refused_unread(serve_here):
    read = []

    def parts() -> Any:
        for _ in range(3200):
            read.append(1)
            yield b" " * 65536

    headers = {**JSON, "content-length": str(3200 * 65536)}
    app = serve_here().client.app

    async def run() -> list[Any]:
        sent: list[Any] = []
        source = parts()

        async def receive() -> Any:
            return {"type": "http.request", "body": next(source), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        for scope_headers in (headers, JSON):
            raw = [(k.encode(), v.encode()) for k, v in scope_headers.items()]
            await app(scope_of(URL, raw), receive, send)
        return sent

    sent = asyncio.run(run())
    assert [m["status"] for m in sent if "status" in m] == [413, 413]
    assert len(read) == 2**20 // 65536 + 1


def scope_of(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": headers,
    }  # fmt: skip


@pytest.mark.parametrize("url", [URL, CHAT])
def test_no_body_is_a_fault_of_the_servers(serve_here, url):
    """Every small piece of JSON where an object with certain fields is due."""
    client = serve_here().client
    pieces = [None, True, 0, -1, 1e300, "", "\x00", "é", [], [[]], {}, {"": None}, [{}], [None]]
    for piece in pieces:
        bodies = [piece] + [GOOD | {name: piece} for name in (*GOOD, "messages", "stop", "stream")]
        for body in bodies:
            answer = client.post(url, content=json.dumps(body), headers=JSON)
            assert answer.status_code in (200, 400, 404), body
            if answer.status_code != 200:
                error_of(answer)


def test_100_000_messages_are_refused_before_tokenising(serve_here):
    served = serve_here(limits=LimitsConfig(max_body_bytes=2**22))
    served.gateway.catalog.find("tiny").tokenizer._encode = None  # would fail if it were called
    messages = [{"role": "user", "content": "x"}] * 100_000
    body = json.dumps({"model": "tiny", "messages": messages})
    answer = served.client.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400 and error_of(answer)["param"] == "messages"
    answer = serve_here().client.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 413


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
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.0.1"),
        ({"logit_bias": {"5": True}}, "logit_bias.0.1"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_json": 5}, "guided_json"),
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
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"nam": "f"}}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
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


TOUCHED: list[str] = []
sys.addaudithook(
    lambda event, args: (
        TOUCHED.append(f"{event} {args[:2]}")
        if event in ("open", "socket.connect", "socket.getaddrinfo", "os.listdir")
        else None
    )
)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("image_url", {"url": "http://169.254.169.254/"}),
        ("image_url", {"url": "file:///etc/passwd"}),
        ("input_audio", {"data": "http://127.0.0.1:6379/", "format": "wav"}),
        ("file", {"file_id": "../../etc/passwd"}),
    ],
)
def test_other_parts_are_refused_by_kind_and_nothing_is_fetched(serve_here, kind, value):
    client = serve_here().client
    messages = [{"role": "user", "content": [{"type": kind, kind: value}]}]
    TOUCHED.clear()
    answer = client.post(CHAT, json={"model": "tiny", "messages": messages})
    assert [each for each in TOUCHED if "169.254" in each or "passwd" in each] == []
    assert not [each for each in TOUCHED if each.startswith("socket")]
    assert answer.status_code == 400 and repr(kind) in error_of(answer)["message"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "tiny/../tiny", "tiny/",
        "./tiny", "tiny\x00", "\x00", "file:///etc/passwd", "~", "TINY", "x" * 256, "a\r\nb: c",
    ],
)  # fmt: skip
def test_names_of_models_are_looked_up_and_never_opened(serve_here, name):
    client = serve_here().client
    TOUCHED.clear()
    answers = [
        client.post(URL, json=GOOD | {"model": name}),
        # httpx would resolve dots by itself.
        client.get("/v1/models/" + quote(name, safe="").replace(".", "%2e")),
    ]
    assert [each for each in TOUCHED if "passwd" in each or "tiny" in each] == []
    for answer in answers:
        assert answer.status_code == 404
        assert error_of(answer)["code"] in ("model_not_found", "not_found")


@pytest.mark.parametrize(
    ("field", "item"), [("messages", 1), ("messages", {"role": "x", "a": 1, "b": 2}), ("stop", "")]
)
def test_the_first_of_many_mistakes_is_the_last_that_is_looked_for(field, item):
    # A megabyte of them would keep the event loop for seconds.
    good = {"model": "tiny", "messages": [{"role": "user"}]}
    with pytest.raises(RequestError) as caught:
        ChatBody.parse(good | {field: [item] * 4000})
    cause = caught.value.__context__
    assert isinstance(cause, ValidationError) and cause.error_count() <= 3
    assert caught.value.param is not None and caught.value.param.startswith(f"{field}.0")


def test_overlong_names_are_refused(serve_here):
    answer = serve_here().client.post(URL, json=GOOD | {"model": "x" * 100_000})
    assert answer.status_code == 400 and error_of(answer)["param"] == "model"


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
    for path in ("/", "/docs", "/v1/images", "/v1/completions/"):
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
