"""The HTTP interface over an engine in this process: shapes, counts, streams, choices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.fake_engine import token_at

URL = "/v1/completions"
CHAT = "/v1/chat/completions"


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "the fox", "max_tokens": 4, "seed": 7, **changes}


def chat_body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the fox"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 4, "seed": 7, **changes}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def expected(served: Any, seed: int, num: int) -> str:
    engine = served.engine
    ids = [token_at(seed, i, engine.vocab_size) for i in range(num)]
    return "".join(engine.tokenizer.decode([i]) for i in ids)


def test_completion_has_text_usage_and_fingerprint(serve_here):
    served = serve_here()
    answer = served.client.post(URL, json=body()).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == expected(served, 7, 4)
    assert answer["choices"][0]["finish_reason"] == "length"
    prompt = len(served.engine.tokenizer.encode("the fox").ids)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["system_fingerprint"] == "ab" * 6


def test_usage_tells_what_of_each_prompt_was_cached(serve_here):
    served = serve_here()
    served.engine.num_cached_tokens = 1
    asked = body(prompt=[[5, 6], [7, 8]], n=2)
    usage = served.client.post(URL, json=asked).json()["usage"]
    assert usage["prompt_tokens"] == 4
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}  # not 4: n answers, one prompt


def test_stream_has_the_same_text_as_the_whole_answer(serve_here):
    served = serve_here()
    whole = served.client.post(URL, json=body()).json()["choices"][0]["text"]
    streamed = served.client.post(
        URL, json=body(stream=True, stream_options={"include_usage": True})
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["x-accel-buffering"] == "no"
    found = events(streamed.text)
    assert found[-1] == "[DONE]"
    assert found[-2]["choices"] == [] and found[-2]["usage"]["completion_tokens"] == 4
    parts = [c["text"] for event in found[:-2] for c in event["choices"]]
    assert "".join(parts) == whole
    assert all(event["usage"] is None for event in found[:-2])


def test_stream_without_usage_has_no_usage_field(serve_here):
    found = events(serve_here().client.post(URL, json=body(stream=True)).text)
    assert all("usage" not in event for event in found[:-1])


def test_chat_stream_names_the_role_once_and_matches_the_whole(serve_here):
    served = serve_here()
    whole = served.client.post(CHAT, json=chat_body()).json()
    assert whole["object"] == "chat.completion"
    found = events(served.client.post(CHAT, json=chat_body(stream=True)).text)[:-1]
    deltas = [event["choices"][0]["delta"] for event in found]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_chat_prompt_goes_through_the_template(serve_here):
    served = serve_here()
    served.client.post(CHAT, json=chat_body())
    tokenizer = served.engine.tokenizer
    ids = served.engine.seen[0].prompt_ids
    assert tokenizer.decode(list(ids), skip_special_tokens=False) == (
        "<bos><user>the fox\n<assistant>"
    )
    assert ids.count(tokenizer.token_to_id("<bos>")) == 1


def test_model_without_template_refuses_chat(serve_here):
    error = serve_here(chat=False).client.post(CHAT, json=chat_body())
    assert error.status_code == 400
    assert error.json()["error"]["code"] == "no_chat_template"


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_draw_with_following_seeds(serve_here, stream):
    served = serve_here()
    answer = served.client.post(URL, json=body(n=3, stream=stream))
    texts = ["", "", ""]
    objects = events(answer.text)[:-1] if stream else [answer.json()]
    for item in objects:
        for choice in item["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [expected(served, 7 + i, 4) for i in range(3)]


def test_list_of_prompts_with_echo(serve_here):
    served = serve_here()
    answer = served.client.post(URL, json=body(prompt=["the", "fox"], n=2, echo=True)).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [text[:3] for text in texts] == ["the", "the", "fox", "fox"]
    assert answer["usage"]["completion_tokens"] == 16


def test_token_ids_pass_unchanged(serve_here):
    served = serve_here()
    assert served.client.post(URL, json=body(prompt=[5, 6, 7])).status_code == 200
    served.client.post(URL, json=body(prompt=[[5, 6], [8]]))
    assert [r.prompt_ids for r in served.engine.seen] == [(5, 6, 7), (5, 6), (8,)]


def test_sampling_parameters_reach_the_engine(serve_here):
    served = serve_here()
    served.client.post(
        URL,
        json=body(
            temperature=0.5,
            top_p=0.9,
            top_k=-1,
            stop="zz",
            frequency_penalty=0.1,
            presence_penalty=0.2,
            repetition_penalty=1.1,
            ignore_eos=True,
        ),
    )
    sampling = served.engine.seen[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert (sampling.stop, sampling.ignore_eos, sampling.max_tokens) == (("zz",), True, 4)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.1, 0.2)
    assert sampling.repetition_penalty == 1.1


def test_seeds_are_drawn_when_none_is_given(serve_here):
    served = serve_here()
    for _ in range(2):
        served.client.post(URL, json=body(seed=None))
    first, second = (request.sampling.seed for request in served.engine.seen)
    assert first != second


def test_completion_logprobs_follow_the_text(serve_here):
    choice = serve_here().client.post(URL, json=body(logprobs=2)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]).encode("utf-8", "replace")
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert len(logprobs["top_logprobs"][0]) == 2
    assert logprobs["text_offset"][0] == 0
    lengths = [len(token) for token in logprobs["tokens"]]
    assert logprobs["text_offset"] == [sum(lengths[:i]) for i in range(4)]


def test_chat_logprobs_carry_bytes(serve_here):
    answer = serve_here().client.post(CHAT, json=chat_body(logprobs=True, top_logprobs=2)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 4 and len(content[0]["top_logprobs"]) == 2
    assert bytes(content[0]["bytes"]).decode("utf-8", "replace") == content[0]["token"]


def test_models_are_listed_by_all_names(serve_here):
    client = serve_here().client
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "tiny-abababababab"]
    assert listed[1]["root"] == "tiny" and listed[1]["digest"] == "ab" * 32
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert client.post(URL, json=body(model="tiny-abababababab")).json()["model"] == "tiny"


def test_ready_only_while_the_engine_works(serve_here):
    served = serve_here()
    assert served.client.get("/healthz").status_code == 200
    assert served.client.get("/readyz").json()["ready"] is True
    served.engine.broken = True
    served.gateway.readiness._asked_s = -10.0
    answer = served.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["tiny: 0 of 1 replicas ready"]
    assert served.client.get("/healthz").status_code == 200


def test_engine_failure_before_the_first_token_is_a_500(serve_here):
    client = serve_here(fail_at=0).client
    for stream in (False, True):
        answer = client.post(URL, json=body(stream=stream))
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_failed"
        assert "fake" not in answer.text


def test_engine_failure_in_mid_stream_ends_with_an_error_and_without_done(serve_here):
    text = serve_here(fail_at=2).client.post(URL, json=body(stream=True)).text
    found = events(text)
    assert found[-1]["error"]["code"] == "engine_failed"
    assert "[DONE]" not in text and len(found) == 3


def test_full_engine_is_a_503_with_retry_after(serve_here):
    answer = serve_here(max_running=0).client.post(URL, json=body())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "overloaded_error"


def test_full_gateway_is_a_503_before_the_body_is_read(serve_here):
    answer = serve_here(capacity=0).client.post(URL, content=b"not json at all")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"


def test_slow_answer_times_out(serve_here):
    from raylm.config.serve import LimitsConfig

    served = serve_here(limits=LimitsConfig(request_timeout_s=0.1), step_s=0.06)
    answer = served.client.post(URL, json=body())
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "request_timeout"
    found = events(served.client.post(URL, json=body(stream=True)).text)
    assert found[-1]["error"]["code"] == "request_timeout"
    assert served.engine.running == {} and len(served.engine.cancelled) == 2


def test_silent_stream_is_kept_alive(serve_here):
    served = serve_here(keep_alive_s=0.05, step_s=0.12)
    text = served.client.post(URL, json=body(stream=True, max_tokens=2)).text
    assert text.count(": keep-alive\n\n") >= 2 and text.endswith("data: [DONE]\n\n")


def test_every_call_is_counted_out_again(serve_here):
    served = serve_here(fail_at=2)
    for stream in (False, True):
        served.client.post(URL, json=body(stream=stream))
        served.client.post(URL, json=body(stream=stream, max_tokens=1))
        served.client.post(URL, json=body(stream=stream, nonsense=1))
    assert served.gateway.admission.in_flight == 0
    assert served.engine.running == {}
