"""Logprobs of prompts: OpenAI's echo, vLLM's own field, and calls that want nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from raylm.config.serve import LimitsConfig
from raylm.engine.protocol import Chunk, Request, TokenLogprob
from raylm.serve.scores import LEAST, completion_scores, prompt_scores
from tests.serve.fake_engine import FakeEngine
from tests.serve.test_endpoints import CHAT, URL, body, chat_body, events, expected

IDS = [1, 5, 6, 7]
"""<bos> and three characters."""


def scored(serve_here: Any, **changes: Any) -> dict[str, Any]:
    answer = serve_here(scores_prompts=True).client.post(URL, json=body(prompt=IDS, **changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_echo_with_logprobs_tells_the_prompt_first(serve_here):
    served = serve_here(scores_prompts=True)
    asked = body(prompt=IDS, echo=True, logprobs=2)
    (choice,) = served.client.post(URL, json=asked).json()["choices"]
    found = choice["logprobs"]
    text_of = served.gateway.catalog.find("tiny").tokenizer.token_text
    assert found["tokens"][:4] == [text_of(i) for i in IDS]
    assert found["token_logprobs"] == [None, -1.0, -2.0, -3.0, *[-0.5] * 4]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][1] == {text_of(3): -3.25, text_of(4): -4.25}
    assert [len(top) for top in found["top_logprobs"][4:]] == [2] * 4
    # The text has no <bos>, and offsets are into the text.
    assert choice["text"].startswith("".join(text_of(i) for i in IDS[1:]))
    assert found["text_offset"][:5] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("wanted", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 1}])
def test_nothing_but_the_prompts_logprobs(serve_here, wanted):
    answer = scored(serve_here, max_tokens=0, **wanted)
    (choice,) = answer["choices"]
    assert answer["usage"]["completion_tokens"] == 0
    assert choice["finish_reason"] == "length"
    if "echo" in wanted:
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, -3.0]
        assert len(choice["text"]) == 3
    else:
        assert (choice["text"], choice["logprobs"]) == ("", None)
        assert [entry and entry[str(i)]["logprob"] for i, entry in zip(
            IDS, choice["prompt_logprobs"], strict=True
        )] == [None, -1.0, -2.0, -3.0]  # fmt: skip


def test_both_ways_have_each_their_own_number(serve_here):
    (choice,) = scored(serve_here, echo=True, logprobs=1, prompt_logprobs=3)["choices"]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 1
    assert set(choice["prompt_logprobs"][1]) == {"3", "4", "5"}
    assert choice["prompt_logprobs"][1]["5"]["rank"] == 3
    assert choice["prompt_logprobs"][2]["6"]["rank"] is None


def test_a_stream_tells_them_once(serve_here):
    asked = body(prompt=[IDS, IDS[:2]], echo=True, logprobs=1, prompt_logprobs=0, stream=True)
    text = serve_here(scores_prompts=True).client.post(URL, json=asked).text
    whole = scored(serve_here, echo=True, logprobs=1, prompt_logprobs=0)["choices"][0]
    choices = [event["choices"][0] for event in events(text)[:-1]]
    first = [choice for choice in choices if choice["index"] == 0]
    joined = {
        name: [value for choice in first for value in choice["logprobs"][name]]
        for name in first[0]["logprobs"]
    }
    assert joined == whole["logprobs"]
    assert first[0]["prompt_logprobs"] == whole["prompt_logprobs"]
    assert all("prompt_logprobs" not in choice for choice in first[1:])
    second = next(choice for choice in choices if choice["index"] == 1)
    assert second["logprobs"]["token_logprobs"] == [None, -1.0, -0.5]


class Slow(FakeEngine):
    """The text of its first token comes with the second."""

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        held = ""
        async for chunk in super().generate(request):
            yield replace(chunk, text="" if chunk.position == 0 else held + chunk.text)
            held = chunk.text if chunk.position == 0 else ""


def test_a_stream_tells_them_though_there_is_no_text_yet(serve_here):
    served = serve_here(engine_of=Slow, scores_prompts=True)
    asked = body(prompt=IDS, prompt_logprobs=0, stream=True)
    first, *rest = events(served.client.post(URL, json=asked).text)[:-1]
    assert first["choices"][0]["text"] == ""
    assert len(first["choices"][0]["prompt_logprobs"]) == len(IDS)
    assert "".join(event["choices"][0]["text"] for event in rest) == expected(served, 7, 4)


def test_an_echo_without_logprobs_asks_for_none(serve_here):
    served = serve_here()
    answer = served.client.post(URL, json=body(echo=True)).json()
    assert answer["choices"][0]["text"] == "the fox" + expected(served, 7, 4)
    assert served.engine.seen[0].sampling.num_prompt_logprobs is None


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt_logprobs": 3}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
    ],
)
def test_what_cannot_be_told_is_refused(serve_here, change, param):
    served = serve_here(limits=LimitsConfig(max_logprobs=2))
    answer = served.client.post(URL, json=body(**change))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_chats_have_no_logprobs_of_prompts(serve_here):
    served = serve_here(scores_prompts=True)
    answer = served.client.post(CHAT, json=chat_body(prompt_logprobs=1))
    assert answer.json()["error"]["code"] == "unsupported_parameter"
    assert served.client.post(CHAT, json=chat_body(prompt_logprobs=None)).status_code == 200


def test_of_tokens_that_look_the_same_the_likelier_is_told(serve_here):
    """Halves of characters all show as U+FFFD."""
    tokenizer = serve_here().gateway.catalog.find("tiny").tokenizer
    halves = [i for i in range(3, 259) if tokenizer.token_bytes(i)[0] >= 0x80][:2]
    top = ((halves[0], -1.0), (halves[1], float("-inf")))
    entry = TokenLogprob(halves[1], float("-inf"), top)
    shown, _ = completion_scores([(halves[1], entry)], tokenizer, num_top=2, offset=0)
    assert shown["top_logprobs"] == [{"\ufffd": -1.0}]
    assert shown["token_logprobs"] == [LEAST]
    (told,) = prompt_scores([halves[1]], [entry], tokenizer, num_top=1)
    assert told is not None
    assert told[str(halves[1])]["logprob"] == LEAST
    json.dumps(told, allow_nan=False)
