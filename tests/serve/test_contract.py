"""The application against its document: requests made up from it, right ones and wrong ones."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.serve.conftest import KEY
from tests.serve.fake_encoder import FakeEncoder
from tests.serve.grammar_engines import closing, random_engine

SEED = 5
Document = dict[str, Any]


def unexpected(
    app: Any,
    *,
    keys: bool,
    max_time_s: int,
    max_examples: int,
    seed: int,
    part: Callable[[Document], Document] = lambda document: document,
    known_ids: Sequence[str] = (),
) -> tuple[list[str], Counter[int]]:
    """What schemathesis finds in all its phases, and how often it got which status.

    `part` is what of the document is to be tried; `known_ids` are of files and batches.
    """
    headers = {"Authorization": f"Bearer {KEY}"} if keys else {}
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "max-time": max_time_s,
            "continue-on-failure": True,
            "headers": headers,
            "generation": {"max-examples": max_examples, "database": "none"},
            # Limits that span fields (a prompt and its answer fit the context) are in no schema.
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    )
    found = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    schema = schemathesis.openapi.from_dict(
        part(_reachable(found.raw_schema, known_ids)), config=config
    )
    schema.app = app
    problems, statuses = [], Counter[int]()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            sent = event.recorder.interactions.values()
            statuses.update(each.response.status_code for each in sent if each.response)
            for checks in event.recorder.checks.values():
                problems += [
                    f"{event.recorder.label}: {check.name}: {check.failure_info.failure}\n"
                    f"{check.failure_info.code_sample}"
                    for check in checks
                    if check.failure_info is not None
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems.append(str(event))
    return problems, statuses


def _reachable(document: Document, known_ids: Sequence[str]) -> Document:
    """The document with names of what there is, and with time enough to answer."""
    found = copy.deepcopy(document)
    for schema in found["components"]["schemas"].values():
        if schema.get("properties", {}).get("model", {}).get("minLength"):
            schema["properties"]["model"] = {"enum": ["tiny"]}
    for operation in (each for methods in found["paths"].values() for each in methods.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "x-raylm-timeout-ms":
                parameter["schema"]["pattern"] = "^[1-9][0-9]{5,8}$"
            if parameter["name"] == "id":
                parameter["examples"] = {each: {"value": each} for each in known_ids}
    return json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("keys", "engine"),
    [(True, {"scores_prompts": True}), (False, {"engine_of": FakeEncoder})],
    ids=["text, with keys", "embeddings, without"],
)
def test_nothing_but_what_is_described(serve_here, keys, engine):
    app = serve_here(keys=(KEY,) if keys else (), **engine).client.app
    problems, statuses = unexpected(app, keys=keys, max_time_s=25, max_examples=10, seed=SEED)
    assert not problems, problems[0]
    assert statuses[200] > 0 and statuses[400] > 0
    assert (statuses[401] > 0) is keys
    assert not [status for status in statuses if status >= 500]


@pytest.mark.faults
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_but_what_is_described_at_length(serve_here, seed):
    """Over the real engine's code, which follows grammars."""
    engines = []

    def engine_of(tokenizer: Any) -> Any:
        engines.append(random_engine(tokenizer))
        return engines[-1]

    app = serve_here(keys=(KEY,), engine_of=engine_of).client.app
    with closing(engines[0]):
        problems, statuses = unexpected(app, keys=True, max_time_s=900, max_examples=200, seed=seed)
    assert not problems, problems[0]
    assert statuses[200] > 100
