"""/v1/embeddings and /v1/classify over an engine in this process."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from raylm.config.serve import LimitsConfig
from raylm.serve.ledger import Ledger
from tests.serve.fake_encoder import LABELS, FakeEncoder, vector
from tests.serve.in_process import a_key, header

URL = "/v1/embeddings"
CLASSIFY = "/v1/classify"


@pytest.fixture
def serve(serve_here):
    def serve(**options: Any) -> Any:
        return serve_here(**{"engine_of": FakeEncoder, **options})

    return serve


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "the fox", **changes}


def ids_of(served: Any, text: str) -> tuple[int, ...]:
    return tuple(served.engine.tokenizer.encode(text).ids)


def expected(served: Any, *texts: str) -> list[list[float]]:
    return [vector(ids_of(served, text)).tolist() for text in texts]


def test_the_official_client_gets_its_vectors_by_both_encodings(serve):
    served = serve()
    client = openai.OpenAI(
        base_url="http://testserver/v1", api_key="none", http_client=served.client
    )
    texts = ["the fox", "jumps over the lazy dog"]
    by_default = client.embeddings.create(model="tiny", input=texts)  # asks for base64
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for answer in (by_default, plain):
        assert [item.embedding for item in answer.data] == expected(served, *texts)
        assert [item.index for item in answer.data] == [0, 1] and answer.model == "tiny"
        assert answer.usage.prompt_tokens == sum(len(ids_of(served, text)) for text in texts)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_texts_count_against_what_a_key_allows(serve):
    ledger = Ledger()
    keys = (
        a_key("a", limits={"tokens_per_minute": 20, "max_concurrency": 1}),
        a_key("b", models=("other",)),
    )
    served = serve(keys=keys, ledger=ledger)

    def ask(url: str, name: str, num_tokens: int) -> tuple[int, str]:
        answer = served.client.post(url, json=body(input=[5] * num_tokens), headers=header(name))
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    assert ask(URL, "a", 8) == ask(CLASSIFY, "a", 8) == (200, "")
    assert [text.tenant for text in served.engine.texts] == ["a", "a"]
    for url in (URL, CLASSIFY):
        assert ask(url, "a", 8) == (429, "tokens_limit_reached")
        assert ask(url, "b", 1) == (404, "model_not_found")
    many = body(input=[[5] * 11] * 2)
    never = served.client.post(URL, json=many, headers=header("a"))
    assert (never.status_code, never.json()["error"]["code"]) == (400, "tokens_above_limit")
    last = served.client.post(URL, json=body(input=[5]), headers=header("a"))
    assert last.status_code == 200, "those that were refused hold no place"
    assert last.headers["x-ratelimit-limit-tokens"] == "20"
    text = served.client.get("/metrics", headers=header("b")).text
    assert 'raylm_tenant_prompt_tokens_total{gateway="g1",tenant="a"} 17.0' in text
    assert 'raylm_tenant_limited_total{gateway="g1",tenant="a"} 2.0' in text


def test_base64_is_of_little_endian_float32(serve):
    served = serve()
    answer = served.client.post(URL, json=body(encoding_format="base64")).json()
    raw = base64.b64decode(answer["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == expected(served, "the fox")[0]
    CreateEmbeddingResponse.model_validate(answer | {"data": []})


@pytest.mark.parametrize(
    ("given", "seen"),
    [([5, 6, 7], [(5, 6, 7)]), ([[5, 6], [8]], [(5, 6), (8,)])],
)
def test_token_ids_pass_unchanged(serve, given, seen):
    served = serve()
    answer = served.client.post(URL, json=body(input=given))
    assert answer.status_code == 200
    assert [request.prompt_ids for request in served.engine.texts] == seen
    assert answer.json()["usage"]["prompt_tokens"] == sum(len(ids) for ids in seen)


def test_pooling_and_deadline_reach_the_engine(serve):
    served = serve()
    served.client.post(URL, json=body(pooling="cls", dimensions=4, user="u"))
    served.client.post(URL, json=body())
    first, second = served.engine.texts
    assert (first.pooling, second.pooling) == ("cls", None)
    assert first.normalize and first.deadline_s is not None


def test_end_of_input_goes_behind_texts_but_not_behind_token_ids(serve):
    served = serve(end_of_input_id=2)
    served.client.post(URL, json=body(input="the fox"))
    served.client.post(URL, json=body(input=[5]))
    served.client.post(URL, json=body(input="the fox " * 20, truncate=True))
    first, second, third = (request.prompt_ids for request in served.engine.texts)
    assert first == (*ids_of(served, "the fox"), 2) and second == (5,)
    assert len(third) == 16 and third[-1] == 2


def test_what_is_too_long_is_cut_only_where_that_is_asked_for(serve):
    served = serve()
    long = "the quick brown fox " * 20
    for given in (long, [5] * 17):
        error = served.client.post(URL, json=body(input=given)).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        answer = served.client.post(URL, json=body(input=given, truncate=True)).json()
        assert answer["usage"]["prompt_tokens"] == 16
    assert served.engine.texts[0].prompt_ids == ids_of(served, long)[:16]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"input": ""}, "invalid_parameter", "input"),
        ({"input": []}, "invalid_parameter", "input"),
        ({"input": ["a", ""]}, "invalid_parameter", "input"),
        ({"input": [[]]}, "invalid_parameter", "input"),
        ({"input": ["a", 5]}, "invalid_parameter", "input"),
        ({"input": [5, 100_000]}, "invalid_parameter", "input"),
        ({"input": [-1]}, "invalid_parameter", "input"),
        ({"input": ["a"] * 5}, "invalid_parameter", "input"),
        ({"input": [[5] * 8, [5] * 13]}, "invalid_parameter", "input"),
        ({"dimensions": 2}, "invalid_parameter", "dimensions"),
        ({"pooling": "last"}, "invalid_value", "pooling"),
        ({"pooling": "max"}, "invalid_parameter", "pooling"),
        ({"encoding_format": "int8"}, "invalid_parameter", "encoding_format"),
        ({"poling": "mean"}, "unknown_parameter", "poling"),
        ({"model": "other"}, "model_not_found", "model"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_field(serve, changes, code, param):
    served = serve(limits=LimitsConfig(max_inputs=4, max_input_tokens=20))
    answer = served.client.post(URL, json=body(**changes))
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert answer.status_code == (404 if param == "model" else 400)
    assert error["type"] == "invalid_request_error" and served.engine.texts == []


def test_what_a_model_cannot_do_is_refused_with_what_it_can(serve, serve_here):
    encoder, decoder = serve(features=frozenset({"embed"})), serve_here()
    prompt = {"model": "tiny", "prompt": "a"}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    for served, url, sent, message in (
        (encoder, CLASSIFY, body(), "this model cannot classify; what it can do: embed"),
        (encoder, "/v1/completions", prompt, "this model cannot generate; what it can do: embed"),
        (encoder, "/v1/chat/completions", chat, "this model cannot generate; .* do: embed"),
        (decoder, URL, body(), "this model cannot embed; what it can do: generate"),
    ):
        answer = served.client.post(url, json=sent)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_call"
        assert message.split(".*")[0] in answer.json()["error"]["message"]


def test_classes_have_labels_and_all_probabilities(serve):
    served = serve()
    answer = served.client.post(CLASSIFY, json=body(input=[[5], [5, 6]])).json()
    assert answer["object"] == "list" and answer["model"] == "tiny"
    assert answer["id"].startswith("classify-")
    assert answer["data"] == [
        {"index": 0, "label": LABELS[1], "probs": [0.25, 0.75], "num_classes": 2},
        {"index": 1, "label": LABELS[0], "probs": [0.75, 0.25], "num_classes": 2},
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_a_long_list_is_worked_on_in_order_and_never_all_at_once(serve):
    served = serve(limits=LimitsConfig(max_inputs=200))
    given = [[5 + i] for i in range(150)]
    answer = served.client.post(URL, json=body(input=given)).json()
    assert [item["embedding"][1] for item in answer["data"]] == [5.0 + i for i in range(150)]
    assert served.engine.most_at_once == 32


@pytest.mark.parametrize("url", [URL, CLASSIFY])
def test_an_engine_that_breaks_is_a_500_and_ends_the_other_texts(serve, url):
    served = serve(fail_at=2, step_s=0.01)
    answer = served.client.post(url, json=body(input=[[5], [5, 6], [7]] + [[8]] * 100))
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_failed"
    assert "fake" not in answer.text
    assert len(served.engine.texts) < 103 and served.engine.at_once == 0
    assert served.gateway.admission.in_flight == 0


def test_what_takes_too_long_is_a_504_and_ends_in_the_engine(serve):
    served = serve(limits=LimitsConfig(request_timeout_s=0.1), step_s=30)
    answer = served.client.post(URL, json=body(input=["a", "b"]))
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "request_timeout"
    assert len(served.engine.cancelled) == 2 and served.gateway.admission.in_flight == 0


def test_full_and_draining_gateways_refuse_before_the_body_is_read(serve):
    answer = serve(capacity=0).client.post(URL, content=b"not json at all")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("path", ["embeddings", "classify", "tokenize", "detokenize"])
def test_every_route_needs_a_key_and_a_post_with_json(serve, path):
    served = serve(keys=("sk-test-0123456789abcdef",))
    assert served.client.post(f"/v1/{path}", json=body()).status_code == 401
    served = serve()
    assert served.client.get(f"/v1/{path}").status_code == 405
    answer = served.client.post(f"/v1/{path}", content=b"[1]")
    assert answer.status_code == 400 and "content-type" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


def test_calls_and_their_tokens_are_counted_by_route(serve):
    served = serve()
    served.client.post(URL, json=body(input=[[5, 6], [7]]))
    served.client.post(CLASSIFY, json=body(input=[5]))
    served.client.post(CLASSIFY, json=body(input=""))
    lines = served.client.get("/metrics").text.splitlines()
    labels = 'gateway="g1",model="tiny",route='
    for wanted in (
        f'raylm_requests_total{{{labels}"embeddings",status_class="2xx"}} 1.0',
        f'raylm_requests_total{{{labels}"classify",status_class="2xx"}} 1.0',
        f'raylm_requests_total{{{labels}"classify",status_class="4xx"}} 1.0',
        'raylm_prompt_tokens_total{gateway="g1",model="tiny"} 4.0',
        f'raylm_request_duration_seconds_count{{{labels}"embeddings"}} 1.0',
    ):
        assert wanted in lines
