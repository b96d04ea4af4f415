"""Kept answers: which are kept, for whom, and equal calls computed once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncGenerator
from typing import Any

import httpx2 as httpx
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.protocol import Chunk, Grammar, Request, Sampling
from raylm.errors import RequestError
from raylm.serve.answer import Items
from raylm.serve.cache import ResultCache
from raylm.serve.plan import Plan
from raylm.serve.results import ResultStore, is_repeatable, result_key
from tests.serve.conftest import cache_of
from tests.serve.in_process import URL, a_key, body, calls, header, until

CHAT = "/v1/chat/completions"
MIB = 2**20


def store(max_bytes: int = MIB, ttl_s: float = 60.0) -> ResultStore:
    return ResultStore(max_bytes=max_bytes, ttl_s=ttl_s)


def found(answer: httpx.Response) -> str | None:
    value: str | None = answer.headers.get("x-raylm-cache")
    return value


def texts(stream: str) -> list[str]:
    """The texts of a stream's events."""
    lines = [x.removeprefix("data: ") for x in stream.split("\n\n") if x.startswith("data: {")]
    return [c["text"] for line in lines for c in json.loads(line)["choices"]]


# The store ------------------------------------------------------------------------------------


def test_the_store_is_bounded_in_bytes_and_drops_what_was_asked_for_longest_ago():
    kept = store(max_bytes=100)
    for key in "abc":
        kept.put(key, b"x" * 30, 0.0)
    assert kept.get("a", 1.0) is not None
    kept.put("d", b"x" * 30, 2.0)
    assert [key for key in "abcd" if kept.get(key, 2.0)] == ["a", "c", "d"]
    kept.put("a", b"x" * 90, 3.0)
    assert len(kept) == 1 and kept.num_bytes == 90
    kept.put("large", b"x" * 101, 3.0)
    assert kept.get("large", 3.0) is None and kept.num_bytes == 90


def test_answers_grow_old():
    kept = store(ttl_s=10.0)
    kept.put("a", b"x", 0.0)
    assert kept.get("a", 9.9) == b"x"
    assert kept.get("a", 10.0) is None and kept.num_bytes == 0


def a_plan(**sampling: Any) -> Plan:
    return Plan((Request("id", (5, 6), Sampling(**sampling)),), 2)


def key_of(plan: Plan, digest: str = "d", engine: str = "e", tenant: str = "t") -> str:
    return result_key(plan, digest, engine, tenant)


def test_every_part_of_the_identity_counts():
    plan = a_plan(temperature=0.0)
    request = plan.requests[0]
    others = {
        key_of(a_plan(temperature=0.0, max_tokens=17)),
        key_of(a_plan(temperature=0.0, stop=("x",))),
        key_of(a_plan(temperature=0.0, num_logprobs=0)),
        key_of(a_plan(temperature=0.0, min_p=0.5)),
        key_of(a_plan(temperature=0.0, min_tokens=2)),
        key_of(a_plan(temperature=0.0, logit_bias=((5, 1.0),))),
        key_of(a_plan(temperature=0.0, grammar=Grammar("regex", "a+"))),
        key_of(a_plan(temperature=0.0, grammar=Grammar("regex", "b+"))),
        key_of(a_plan(temperature=0.0, num_prompt_logprobs=0)),
        key_of(dataclasses.replace(plan, is_scoring=True)),
        key_of(a_plan(temperature=1.0)),
        key_of(a_plan(temperature=1.0, seed=1)),
        key_of(plan, digest="other"),
        key_of(plan, engine=json.dumps(EngineConfig().key())),
        key_of(plan, tenant="other"),
        key_of(Plan((request, request), 2)),
        key_of(Plan((dataclasses.replace(request, prompt_ids=(56,)),), 1)),
        key_of(Plan((dataclasses.replace(request, variant="canary"),), 2)),
    }
    assert len(others) == 18 and key_of(plan) not in others


def test_what_changes_no_text_is_not_part_of_the_identity():
    plan = a_plan(temperature=0.0, seed=1)
    same = dataclasses.replace(
        plan.requests[0], id="other", tenant="x", priority=3, deadline_s=9.0,
        sampling=dataclasses.replace(plan.requests[0].sampling, seed=2),
    )  # fmt: skip
    assert key_of(plan) == key_of(Plan((same,), 2))


@pytest.mark.parametrize(
    ("temperature", "has_seed", "repeatable"),
    [(0.0, False, True), (0.7, True, True), (0.7, False, False)],
)
def test_which_requests_have_one_answer(temperature, has_seed, repeatable):
    assert is_repeatable(a_plan(temperature=temperature), has_seed=has_seed) is repeatable


# Through the gateway --------------------------------------------------------------------------


@pytest.mark.parametrize("url", [URL, CHAT])
def test_a_hit_is_the_same_answer_without_the_engine(serve_here, url):
    served = serve_here(results=store())
    asked = body(seed=7, temperature=0.8, n=2, logprobs=2)
    if url == CHAT:
        messages = [{"role": "user", "content": "the fox"}]
        asked = {k: v for k, v in asked.items() if k not in ("prompt", "logprobs")}
        asked |= {"messages": messages, "logprobs": True, "top_logprobs": 2}
    first, second = (served.client.post(url, json=asked) for _ in range(2))
    assert (found(first), found(second)) == ("miss", "hit")
    a, b = first.json(), second.json()
    assert a["id"] != b["id"]
    assert (a["choices"], a["usage"]) == (b["choices"], b["usage"])
    assert served.engine.generated == 8, "two answers of four tokens, once"
    text = served.client.get("/metrics").text
    assert 'raylm_cache_lookups_total{found="hit",gateway="g1",model="tiny"} 1.0' in text


def test_a_hit_streams_the_same_chunks_and_usage(serve_here):
    served = serve_here(results=store())
    asked = body(stream=True, stream_options={"include_usage": True}, max_tokens=6)
    first, second = (served.client.post(URL, json=asked) for _ in range(2))
    whole = served.client.post(URL, json=body(max_tokens=6))
    assert [found(a) for a in (first, second, whole)] == ["miss", "hit", "hit"]
    assert texts(first.text) == texts(second.text) and len(texts(first.text)) == 6
    assert "".join(texts(first.text)) == whole.json()["choices"][0]["text"]
    assert second.text.endswith("data: [DONE]\n\n")
    assert f'"usage": {json.dumps(whole.json()["usage"])}' in second.text
    assert served.engine.generated == 6


def test_echo_and_format_are_of_the_call_not_of_the_answer(serve_here):
    served = serve_here(results=store())
    plain = served.client.post(URL, json=body()).json()["choices"][0]["text"]
    echoed = served.client.post(URL, json=body(echo=True))
    assert found(echoed) == "hit"
    assert echoed.json()["choices"][0]["text"] == "the fox" + plain


def test_scores_of_a_prompt_are_not_taken_for_an_answer_of_one_token(serve_here):
    served = serve_here(results=store(), scores_prompts=True)
    asked = [body(max_tokens=n, prompt_logprobs=1) for n in (0, 1, 0, 1)]
    answers = [served.client.post(URL, json=each) for each in asked]
    assert [found(a) for a in answers] == ["miss", "miss", "hit", "hit"]
    assert [a.json()["usage"]["completion_tokens"] for a in answers] == [0, 1, 0, 1]
    scores = [a.json()["choices"][0]["prompt_logprobs"] for a in answers]
    assert scores[0] and scores == scores[:1] * 4


def test_a_response_is_kept_as_the_chat_that_it_is(serve_here):
    served = serve_here(results=store())
    said = {"model": "tiny", "temperature": 0, "top_p": 1}
    chat = said | {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4}
    response = said | {"input": "the fox", "max_output_tokens": 4}
    first = served.client.post(CHAT, json=chat)
    second = served.client.post("/v1/responses", json=response)
    assert (found(first), found(second)) == ("miss", "hit")
    text = second.json()["output"][0]["content"][0]["text"]
    assert text == first.json()["choices"][0]["message"]["content"]
    assert len(served.engine.seen) == 1


def test_an_impatient_client_ends_its_own_call_alone(serve_here):
    served = serve_here(results=store(), step_s=0.02)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        hurry = {"x-raylm-timeout-ms": "300"}
        first = asyncio.create_task(client.post(URL, json=body(max_tokens=40), headers=hurry))
        await until(lambda: served.engine.generated > 1)
        return await asyncio.gather(first, client.post(URL, json=body(max_tokens=40)))

    first, second = calls(served, work)
    assert (first.status_code, second.status_code) == (504, 200)
    assert found(second) == "shared"
    assert [request.deadline_s for request in served.engine.seen] == [None]


def test_what_is_drawn_anew_is_not_kept(serve_here):
    served = serve_here(results=store())
    answers = [served.client.post(URL, json=body(temperature=0.7)) for _ in range(2)]
    assert [found(a) for a in answers] == [None, None]
    assert len(served.engine.seen) == 2


def test_without_a_cache_nothing_is_said_of_it(serve_here):
    assert found(serve_here().client.post(URL, json=body())) is None


@pytest.mark.parametrize("stream", [False, True])
def test_failed_answers_are_not_kept(serve_here, stream):
    served = serve_here(results=store())
    served.engine.fail_at = 2
    for _ in range(2):
        broken = served.client.post(URL, json=body(stream=stream))
        assert found(broken) == "miss" and "engine_failed" in broken.text
    served.engine.fail_at = None
    assert found(served.client.post(URL, json=body())) == "miss"
    assert found(served.client.post(URL, json=body())) == "hit"


def test_an_answer_that_stops_short_is_not_kept():
    kept, plan = store(), a_plan(temperature=0.0)

    async def short() -> AsyncGenerator[Items, None]:
        yield [(0, Chunk("id", 0, (5,), "x"))]

    async def work() -> None:
        served = await cache_of(kept).serve("key", plan, short)
        with pytest.raises(RequestError) as caught:
            async for _ in served.items:
                pass
        assert caught.value.code == "engine-failed"
        served.close()

    asyncio.run(work())
    assert len(kept) == 0


@pytest.mark.parametrize(("digest", "num_kept"), [("ab", 1), ("", 1), ("cd", 0)])
def test_what_other_weights_say_is_not_kept(digest, num_kept):
    """A name may be deployed again between a call and its answer."""
    kept, plan = store(), a_plan(temperature=0.0)

    async def whole() -> AsyncGenerator[Items, None]:
        yield [(0, Chunk("id", 0, (5,), "x", (), "length", digest=digest))]

    async def work() -> None:
        served = await cache_of(kept).serve("key", plan, whole, "ab")
        assert [items async for items in served.items]
        served.close()
        await asyncio.sleep(0)

    asyncio.run(work())
    assert len(kept) == num_kept


def test_other_weights_have_other_answers(serve_here):
    kept = store()
    first, second = serve_here(results=kept), serve_here(results=kept, digest="cd" * 32)
    assert found(first.client.post(URL, json=body())) == "miss"
    assert found(second.client.post(URL, json=body())) == "miss"
    unhashed = serve_here(results=kept, digest="")
    assert found(unhashed.client.post(URL, json=body())) is None


def test_gateways_share_what_is_kept(serve_here):
    kept = store()
    one, two = serve_here(results=kept), serve_here(results=kept)
    assert found(one.client.post(URL, json=body())) == "miss"
    assert found(two.client.post(URL, json=body())) == "hit" and two.engine.seen == []


def test_a_hit_takes_a_request_but_no_tokens(serve_here):
    key = a_key("a", limits={"requests_per_minute": 9, "tokens_per_minute": 100})
    served = serve_here(keys=(key,), results=store())
    asked = body(prompt=[5, 6], max_tokens=40)
    answers = [served.client.post(URL, json=asked, headers=header("a")) for _ in range(4)]
    assert [a.status_code for a in answers] == [200] * 4
    assert [found(a) for a in answers] == ["miss"] + ["hit"] * 3
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "5"
    # 42 were used once; each later call reserves 42 and gives them back.
    assert 16 <= int(answers[-1].headers["x-ratelimit-remaining-tokens"]) <= 20


def test_equal_calls_at_once_are_computed_once(serve_here):
    served = serve_here(results=store(), step_s=0.01)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [body(max_tokens=20, stream=i % 2 == 1) for i in range(8)]
        return await asyncio.gather(*(client.post(URL, json=each) for each in asked))

    answers = calls(served, work)
    assert [a.status_code for a in answers] == [200] * 8
    assert sorted(found(a) or "" for a in answers) == ["miss"] + ["shared"] * 7
    said = {
        "".join(texts(a.text)) if i % 2 else a.json()["choices"][0]["text"]
        for i, a in enumerate(answers)
    }
    assert len(said) == 1 and len(served.engine.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_to_ask_may_leave_and_the_others_get_their_answer(serve_here, stream):
    served = serve_here(results=store(), step_s=0.01)

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        asked = body(max_tokens=40, stream=stream)
        first = asyncio.create_task(client.post(URL, json=asked))
        await until(lambda: served.engine.generated > 3)
        second = asyncio.create_task(client.post(URL, json=asked))
        await until(lambda: served.gateway.admission.in_flight == 2)
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await second

    answer = calls(served, work)
    assert answer.status_code == 200 and found(answer) == "shared"
    assert served.engine.cancelled == [] and served.engine.generated == 40
    again = served.client.post(URL, json=body(max_tokens=40))
    assert found(again) == "hit"
    assert served.gateway.admission.in_flight == 0


def test_when_all_have_left_the_engine_is_freed_and_nothing_is_kept(serve_here):
    served = serve_here(results=store(), step_s=0.01)

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        asked = body(max_tokens=60)
        tasks = [asyncio.create_task(client.post(URL, json=asked)) for _ in range(3)]
        await until(lambda: served.engine.generated > 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not served.engine.running)
        return await client.post(URL, json=body(max_tokens=60))

    assert found(calls(served, work)) == "miss"
    assert len(served.engine.cancelled) == 1
    assert served.gateway.dispatch.turns.num_waiting == 0


def test_all_hear_of_the_failure_of_the_one_computation(serve_here):
    served = serve_here(results=store(), step_s=0.01)
    served.engine.fail_at = 5

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post(URL, json=body(max_tokens=9)) for _ in range(3)))

    answers = calls(served, work)
    assert [a.status_code for a in answers] == [500] * 3 and len(served.engine.seen) == 1


def test_a_cache_that_is_away_means_that_answers_are_made(serve_here):
    served = serve_here(results=store())

    async def broken(*_: Any) -> Any:
        raise RuntimeError("dead")

    served.gateway.dispatch.cache = ResultCache(broken, broken)
    for _ in range(2):
        answer = served.client.post(URL, json=body())
        assert answer.status_code == 200 and found(answer) == "miss"


# Isolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [True, False])
def test_another_tenant_gets_no_hit_unless_tenants_share(serve_here, isolate):
    served = serve_here(keys=(a_key("a"), a_key("b")), results=store(), isolate=isolate)
    found_by = [
        found(served.client.post(URL, json=body(), headers=header(name))) for name in "abab"
    ]
    assert found_by == (
        ["miss", "miss", "hit", "hit"] if isolate else ["miss", "hit", "hit", "hit"]
    )


def test_no_tenant_ever_gets_anothers_answer(serve_here):
    """Canaries: every tenant's prompt holds a string of its own, which the answer repeats."""
    names = [f"t{i:02}" for i in range(64)]
    served = serve_here(
        keys=tuple(a_key(name) for name in names), results=store(), step_s=0.001, running=16,
        capacity=4096,
    )  # fmt: skip
    canary = {name: f"canary{name}" for name in names}
    draw = random.Random(5)

    async def ask(client: httpx.AsyncClient, name: str, shared: int) -> tuple[str, httpx.Response]:
        asked = body(
            prompt=f"{canary[name]} {shared}", echo=True, stream=draw.random() < 0.5, max_tokens=3
        )
        return name, await client.post(URL, json=asked, headers=header(name))

    async def work(client: httpx.AsyncClient) -> list[tuple[str, httpx.Response]]:
        jobs = [ask(client, name, i % 2) for i in range(8) for name in names]
        draw.shuffle(jobs)
        return await asyncio.gather(*jobs)

    answers = calls(served, work)
    assert len(answers) == 512 and {a.status_code for _, a in answers} == {200}
    leaks = [
        (name, other)
        for name, answer in answers
        for other in names
        if other != name and canary[other] in answer.text
    ]
    assert leaks == []
    assert all(canary[name] in answer.text for name, answer in answers)
    # The same prompt by all: each computes it for itself, and is told so.
    seen = len(served.engine.seen)

    async def same(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = body(prompt="all ask this", max_tokens=3)
        return await asyncio.gather(
            *(client.post(URL, json=asked, headers=header(name)) for name in names)
        )

    assert {found(answer) for answer in calls(served, same)} == {"miss"}
    assert len(served.engine.seen) == seen + 64
