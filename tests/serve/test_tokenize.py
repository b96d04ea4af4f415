"""/v1/tokenize and /v1/detokenize: the gateway's own work."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.fake_encoder import FakeEncoder
from tests.serve.fake_engine import MAX_CONTEXT

URL = "/v1/tokenize"
BACK = "/v1/detokenize"
MESSAGES = [{"role": "user", "content": "the fox"}]


def ids_of(served: Any, text: str, special: bool = True) -> list[int]:
    return served.engine.tokenizer.encode(text, add_special_tokens=special).ids


def test_a_prompt_as_completions_would_have_it(serve_here):
    served = serve_here()
    answer = served.client.post(URL, json={"model": "tiny", "prompt": "the fox"}).json()
    ids = ids_of(served, "the fox")
    assert answer == {
        "count": len(ids),
        "max_model_len": MAX_CONTEXT,
        "tokens": ids,
        "token_strs": None,
    }
    assert served.client.post(BACK, json={"model": "tiny", "tokens": ids}).json() == {
        "prompt": "the fox"
    }
    assert served.engine.seen == []


def test_messages_as_chat_would_have_them(serve_here):
    served = serve_here()
    sent = {"model": "tiny", "messages": MESSAGES}
    tokens = served.client.post(URL, json=sent).json()["tokens"]
    served.client.post("/v1/chat/completions", json=sent | {"max_tokens": 1})
    assert tuple(tokens) == served.engine.seen[0].prompt_ids
    text = served.client.post(BACK, json={"model": "tiny", "tokens": tokens}).json()["prompt"]
    assert text == "<bos><user>the fox\n<assistant>"
    bare = served.client.post(URL, json=sent | {"add_generation_prompt": False}).json()["tokens"]
    assert tokens[: len(bare)] == bare and len(bare) < len(tokens)


def test_token_strs_are_as_the_vocabulary_writes_them(serve_here):
    served = serve_here()
    sent = {"model": "tiny", "prompt": "the fox", "return_token_strs": True}
    answer = served.client.post(URL, json=sent).json()
    assert "".join(answer["token_strs"]) == "theĠfox"
    assert len(answer["token_strs"]) == answer["count"]


def test_special_tokens_are_added_unless_refused(serve_here):
    served = serve_here(engine_of=FakeEncoder, end_of_input_id=2)
    sent = {"model": "tiny", "prompt": "the fox"}
    plain = ids_of(served, "the fox")
    with_end = served.client.post(URL, json=sent).json()["tokens"]
    without = served.client.post(URL, json=sent | {"add_special_tokens": False}).json()["tokens"]
    assert (with_end, without) == ([*plain, 2], plain)


def test_prompts_beyond_the_context_are_counted_too(serve_here):
    sent = {"model": "tiny", "prompt": "the fox " * 500}
    answer = serve_here().client.post(URL, json=sent).json()
    assert answer["count"] > MAX_CONTEXT == answer["max_model_len"]


@pytest.mark.parametrize(
    ("path", "sent", "code", "param"),
    [
        (URL, {}, "invalid_parameter", None),
        (URL, {"prompt": "a", "messages": MESSAGES}, "invalid_parameter", None),
        (URL, {"messages": []}, "invalid_parameter", "messages"),
        (URL, {"prompt": 5}, "invalid_parameter", "prompt"),
        (BACK, {}, "missing_parameter", "tokens"),
        (BACK, {"tokens": "a"}, "invalid_parameter", "tokens"),
        (BACK, {"tokens": ["a"]}, "invalid_parameter", "tokens.0"),
        (BACK, {"tokens": [5, 100_000]}, "invalid_token_id", "tokens"),
        (BACK, {"tokens": [-1]}, "invalid_token_id", "tokens"),
        (BACK, {"tokens": [2**70]}, "invalid_token_id", "tokens"),
    ],
)
def test_what_cannot_be_done_is_a_400(serve_here, path, sent, code, param):
    answer = serve_here().client.post(path, json={"model": "tiny", **sent})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


def test_a_model_without_template_takes_no_messages(serve_here):
    answer = serve_here(chat=False).client.post(URL, json={"model": "tiny", "messages": MESSAGES})
    assert answer.json()["error"]["code"] == "no_chat_template"
