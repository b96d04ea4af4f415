"""Structured answers through the gateway, read by the official client."""

from __future__ import annotations

import json
import re
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.serve.grammar_engines import closing, random_engine

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "the fox"}]


class Address(BaseModel):
    """Every field bounded, so that a model without sense comes to an end."""

    street: str = Field(max_length=9)
    zip: str = Field(pattern="^[0-9]{5}$")
    country: Literal["DE", "FR"]


@pytest.fixture
def ask(serve_here):
    engines = []

    def engine_of(tokenizer):
        engines.append(random_engine(tokenizer))
        return engines[-1]

    served = serve_here(engine_of=engine_of)
    with closing(engines[0]):
        yield openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=served.client
        )


def schema_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


@pytest.mark.parametrize("seed", range(4))
def test_the_client_parses_answers_into_its_own_models(ask, seed):
    answer = ask.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Address, seed=seed, max_tokens=300
    )
    assert isinstance(answer.choices[0].message.parsed, Address)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_has_the_text_of_the_whole_answer(ask):
    asked = {
        "model": "tiny",
        "messages": MESSAGES,
        "response_format": schema_format(Address.model_json_schema(), strict=True),
        "seed": 5,
        "max_tokens": 300,
    }
    whole = ask.chat.completions.create(**asked).choices[0].message.content
    parts = [
        event.choices[0].delta.content or ""
        for event in ask.chat.completions.create(**asked, stream=True)
    ]
    assert "".join(parts) == whole
    Address.model_validate_json(whole)


def test_json_object_and_text(ask):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400}
    for seed in range(3):
        answer = ask.chat.completions.create(
            **asked, response_format={"type": "json_object"}, seed=seed
        )
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    free = [
        ask.chat.completions.create(**asked, **form, seed=1).choices[0].message.content
        for form in ({}, {"response_format": {"type": "text"}})
    ]
    assert free[0] == free[1]


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
        ({"guided_grammar": 'start: "x" DIGIT+\nDIGIT: /[0-9]/'}, "x[0-9]+"),
        ({"guided_json": {"enum": ["a", 1]}}, '"a"|1'),
        ({"guided_json": '{"type": "boolean"}'}, "true|false"),
        ({"response_format": schema_format({"const": "só"})}, '"só"'),
    ],
)
def test_completions_follow_what_clients_of_vllm_ask_for(ask, extra, pattern):
    answer = ask.completions.create(
        model="tiny", prompt="the", max_tokens=60, n=2, seed=1, extra_body=extra
    )
    texts = [choice.text for choice in answer.choices if choice.finish_reason == "stop"]
    assert texts and all(re.fullmatch(pattern, text) for text in texts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("extra", "param", "says"),
    [
        ({"response_format": schema_format({"type": "strin"})}, "response_format", "Invalid type"),
        (
            {"response_format": schema_format({"properties": {"a": {"not": {}}}})},
            "response_format",
            "'not' at #/properties/a",
        ),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "unknown name"),
    ],
)
def test_what_cannot_be_followed_is_a_400_at_once(ask, stream, extra, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        ask.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=stream, extra_body=extra
        )
    assert error.value.param == param and error.value.code == "invalid_grammar"
    assert says in error.value.message


def test_biases_min_p_and_min_tokens_reach_the_sampler(ask):
    forced = ask.completions.create(
        model="tiny", prompt="the", max_tokens=3, logit_bias={"70": 100}, logprobs=1
    )
    assert len(set(forced.choices[0].logprobs.tokens)) == 1
    assert forced.choices[0].logprobs.token_logprobs[0] < -1  # the model's own
    for asked in ({"min_p": 1.0}, {"temperature": 0}):
        drawn = [
            ask.completions.create(
                model="tiny", prompt="the", max_tokens=9, seed=s, extra_body=asked
            )
            for s in (1, 2)
        ]
        assert drawn[0].choices[0].text == drawn[1].choices[0].text
    ends = {"logit_bias": {"2": 100}, "max_tokens": 9}
    lengths = [
        ask.completions.create(
            model="tiny", prompt="the", **ends, extra_body={"min_tokens": least}
        ).usage.completion_tokens
        for least in (0, 5)
    ]
    assert lengths == [1, 6]


def test_an_engine_without_grammars_refuses_them_by_name(serve_here):
    body = {"model": "tiny", "messages": MESSAGES, "guided_regex": "a"}
    error = serve_here().client.post(CHAT, json=body)
    assert error.status_code == 400
    assert error.json()["error"]["param"] == "guided_regex"
    assert "'fake' follows no grammar" in error.json()["error"]["message"]
