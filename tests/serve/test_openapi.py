"""The document of the API: every route, every status, and what answers really look like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from raylm.config.serve import BatchesConfig
from raylm.serve.batches.endpoints import BatchRoutes
from raylm.serve.openapi import document
from raylm.serve.routes import build_app
from raylm.serve.table import ROUTES
from tests.serve.conftest import KEY, keyring_of, write_model_files
from tests.serve.grammar_engines import ScriptedEngine
from tests.serve.test_endpoints import CHAT, URL, body, chat_body
from tests.serve.test_responses import CALL, HERMES, TOOLS

SERVE = Path(__file__).parents[2] / "raylm/serve"
RESPONSES = "/v1/responses"


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    known = {"components": document(needs_key=True, batches=True)["components"]}
    return jsonschema.Draft202012Validator({**known, **schema})


def operation(path: str, method: str = "post") -> dict[str, Any]:
    found: dict[str, Any] = document(needs_key=True, batches=True)["paths"][path][method]
    return found


def event_of(content: dict[str, Any]) -> jsonschema.Draft202012Validator:
    data = content["text/event-stream"]["schema"]["properties"]["data"]
    return validator(data["contentSchema"])


@pytest.mark.parametrize("batches", [False, True])
def test_the_application_has_the_routes_of_the_document(serve_here, tmp_path, batches):
    served = serve_here()
    gateway = served.gateway
    routes = BatchRoutes(
        tmp_path, BatchesConfig(), gateway.limits, gateway.admission, wake=lambda: None
    )
    app = build_app(gateway, keyring_of(()), routes if batches else None)
    found = [(r.path, method) for r in app.routes for method in r.methods - {"HEAD"}]
    described = {
        (path.replace("{model}", "{model:path}"), method.upper())
        for path, methods in document(needs_key=False, batches=batches)["paths"].items()
        for method in methods
    }
    assert sorted(found) == sorted(described)
    assert len(described) == len(ROUTES) + 9 * batches
    with TestClient(app) as client:
        shown = client.get("/openapi.json").json()
    assert shown == document(needs_key=False, batches=batches)
    assert ("/v1/files" in shown["paths"]) is batches
    assert ("BatchObject" in shown["components"]["schemas"]) is batches


def test_every_schema_is_one_and_every_reference_leads_somewhere():
    whole = document(needs_key=True, batches=True)
    for name, schema in whole["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        is_closed = schema.get("additionalProperties") is False
        assert is_closed or name == "Document", name
    for ref in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(whole)):
        assert ref in whole["components"]["schemas"], ref


def test_the_statuses_are_those_that_the_code_has():
    """Whatever status a RequestError in the gateway has is described, or is no route's own."""
    code = "".join(path.read_text() for path in SERVE.rglob("*.py"))
    said = {int(status) for status in re.findall(r"status=(\d{3})", code)}
    described = {
        int(status)
        for methods in document(needs_key=True, batches=True)["paths"].values()
        for each in methods.values()
        for status in each["responses"]
    }
    assert said - described == set()
    assert described - said == {200, 400}  # 400 is the default


def test_the_document_needs_a_key_and_says_so(serve_here):
    closed = serve_here(keys=(KEY,)).client
    assert closed.get("/openapi.json").status_code == 401
    found = closed.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert found == document(needs_key=True, batches=False)
    secured = {path for path, methods in found["paths"].items() for each in methods.values()
               if "security" in each}  # fmt: skip
    assert set(found["paths"]) - secured == {"/healthz", "/readyz"}
    opened = serve_here().client.get("/openapi.json").json()
    assert "securitySchemes" not in opened["components"]
    for status in ("401", "403", "429"):
        assert status in found["paths"][URL]["post"]["responses"]
        assert status not in opened["paths"][URL]["post"]["responses"]


@pytest.mark.parametrize(
    ("path", "good"),
    [
        (URL, body()),
        (URL, body(prompt=["a", [5]], stop="x", logit_bias={"5": 1})),
        (CHAT, chat_body(tool_choice={"type": "function", "function": {"name": "f"}})),
        (RESPONSES, {"model": "m", "input": [{"role": "user", "content": "x"}]}),
        (RESPONSES, {"model": "m", "input": "x", "priority": -3}),
        (URL, body(suffix=None, best_of=1)),
    ],
)
def test_bodies_that_are_taken_are_valid(path, good):
    schema = operation(path)["requestBody"]["content"]["application/json"]["schema"]
    validator(schema).validate(good)


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (URL, body(suffix="x")),
        (URL, body(temprature=1)),
        (URL, body(temperature="1")),
        (URL, body(prompt=[])),
        (URL, body(logit_bias={"05": 1})),
        (CHAT, chat_body(messages=[])),
        (CHAT, chat_body(messages=[{"role": "user", "content": [{"type": "image_url"}]}])),
        (CHAT, chat_body(tool_choice={"type": "function"})),
        (RESPONSES, {"model": "m", "input": [{"type": "reasoning"}]}),
        (RESPONSES, {"model": "m", "input": "x", "store": True}),
        (RESPONSES, {"model": "m", "input": "x", "priority": 101}),
        (RESPONSES, {"model": "m", "input": [{"role": "user", "content": "x"}] * 4096}),
        (CHAT, chat_body(messages=[{"role": "user", "content": "x"}] * 4097)),
    ],
)
def test_bodies_that_are_refused_are_not(serve_here, path, bad):
    schema = operation(path)["requestBody"]["content"]["application/json"]["schema"]
    assert not validator(schema).is_valid(bad)
    assert serve_here().client.post(path, json=bad).status_code == 400


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (URL, body(logprobs=2, echo=True, prompt_logprobs=1, n=2)),
        (URL, body(stream_options={"include_usage": True})),
        (CHAT, chat_body(logprobs=True, top_logprobs=2)),
        (RESPONSES, {"model": "tiny", "input": "x", "include": ["message.output_text.logprobs"]}),
    ],
)
def test_streams_are_of_the_events_that_are_named(serve_here, path, asked):
    served = serve_here(scores_prompts=True)
    content = operation(path)["responses"]["200"]["content"]
    event = event_of(content)
    text = served.client.post(path, json=asked | {"stream": True}).text
    found = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data")]
    assert len(found) > 4
    for data in found:
        if data != "[DONE]":
            event.validate(json.loads(data))
    whole = {name: value for name, value in asked.items() if name != "stream_options"}
    validator(content["application/json"]["schema"]).validate(
        served.client.post(path, json=whole).json()
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_calls_of_tools_are_as_described(serve_here, tmp_path, path, stream):
    files = write_model_files(tmp_path / "model", template=HERMES)
    served = serve_here(files=files, engine_of=ScriptedEngine, script=[f"See: {CALL}"])
    function = {name: value for name, value in TOOLS[0].items() if name != "type"}
    asked: dict[str, Any] = {"model": "tiny", "input": "x", "tools": TOOLS}
    if path == CHAT:
        asked = chat_body(tools=[{"type": "function", "function": function}], max_tokens=90)
    answer = served.client.post(path, json=asked | {"stream": stream})
    content = operation(path)["responses"]["200"]["content"]
    assert "get_weather" in answer.text
    if not stream:
        validator(content["application/json"]["schema"]).validate(answer.json())
        return
    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            data = json.loads(line.removeprefix("data: "))
            event_of(content).validate(data)
