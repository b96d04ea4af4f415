"""What a key allows, and whose turn it is, through the real gateway app."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import pytest

from raylm.serve.ledger import Ledger
from tests.serve.in_process import URL, a_key, body, calls, header, key_of, until


def post(served: Any, name: str, **changes: Any) -> httpx.Response:
    answer: httpx.Response = served.client.post(URL, json=body(**changes), headers=header(name))
    return answer


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_scopes_open_their_paths_alone(serve_here):
    served = serve_here(
        keys=(a_key("asks", scopes=("infer",)), a_key("looks", scopes=("metrics",)))
    )
    get = served.client.get
    assert post(served, "asks").status_code == 200
    assert get("/v1/models", headers=header("asks")).status_code == 200
    assert get("/metrics", headers=header("looks")).status_code == 200
    for path, name in (("/metrics", "asks"), ("/v1/models", "looks"), ("/nowhere", "looks")):
        refused = get(path, headers=header(name))
        assert code_of(refused) == (403, "insufficient_scope")
        assert refused.json()["error"]["type"] == "permission_error"
    assert code_of(post(served, "looks")) == (403, "insufficient_scope")


def test_models_that_a_key_may_not_use_do_not_exist_for_it(serve_here):
    keys = (a_key("some", models=("tiny-abababababab",)), a_key("none", models=("other",)))
    served = serve_here(keys=keys)
    assert post(served, "some").status_code == 200, "any name of the model will do"
    refused = post(served, "none")
    assert code_of(refused) == (404, "model_not_found")
    assert "known: none" in refused.json()["error"]["message"]
    get = served.client.get
    assert len(get("/v1/models", headers=header("some")).json()["data"]) == 2
    assert get("/v1/models", headers=header("none")).json()["data"] == []
    assert get("/v1/models/tiny", headers=header("none")).status_code == 404
    assert served.engine.seen[-1].tenant == "some" and len(served.engine.seen) == 1


def test_expired_keys_are_refused_by_the_wall_clock(serve_here):
    keys = (a_key("old", expires_s=time.time() - 1), a_key("new", expires_s=time.time() + 60))
    served = serve_here(keys=keys)
    assert code_of(post(served, "old")) == (401, "expired_api_key")
    assert post(served, "new").status_code == 200


def test_the_engine_is_told_whose_request_it_is_and_the_body_cannot_say(serve_here):
    served = serve_here(keys=(a_key("a"), a_key("b")))
    for name in "ab":
        assert post(served, name).status_code == 200
    assert [(r.tenant, r.cache_salt) for r in served.engine.seen] == [("a", "id-a"), ("b", "id-b")]
    for field in ("cache_salt", "tenant"):
        assert code_of(post(served, "a", **{field: "id-b"})) == (400, "unknown_parameter")


def test_without_isolation_prefixes_are_shared(serve_here):
    served = serve_here(keys=(a_key("a"),), isolate=False)
    post(served, "a")
    assert served.engine.seen[0].cache_salt == ""


def test_priority_is_honoured_up_to_what_the_key_allows(serve_here):
    served = serve_here(keys=(a_key("a", max_priority=5), a_key("b")))
    for priority in (None, -100, 5):
        assert post(served, "a", priority=priority).status_code == 200
    assert [r.priority for r in served.engine.seen] == [0, -100, 5]
    assert code_of(post(served, "a", priority=6)) == (403, "priority_not_allowed")
    assert code_of(post(served, "b", priority=1)) == (403, "priority_not_allowed")
    assert code_of(post(served, "a", priority=101)) == (400, "invalid_parameter")
    assert code_of(post(served, "a", priority=True)) == (400, "invalid_parameter")


def test_responses_are_held_to_what_the_key_allows(serve_here):
    keys = (a_key("a", max_priority=5, limits={"requests_per_minute": 2}), a_key("b", models=()))
    served = serve_here(keys=keys)

    def ask(name: str, **changes: Any) -> httpx.Response:
        asked = {"model": "tiny", "input": "x", "max_output_tokens": 4} | changes
        answer: httpx.Response = served.client.post(
            "/v1/responses", json=asked, headers=header(name)
        )
        return answer

    assert code_of(ask("a", priority=6)) == (403, "priority_not_allowed")
    assert [ask("a", priority=5).status_code for _ in range(2)] == [200, 200]
    assert [(r.tenant, r.priority) for r in served.engine.seen] == [("a", 5)] * 2
    refused = ask("a")
    assert refused.status_code == 429 and refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert code_of(ask("b")) == (404, "model_not_found")


def test_requests_per_minute_with_openais_headers(serve_here):
    served = serve_here(keys=(a_key("a", limits={"requests_per_minute": 2}), a_key("b")))
    first = post(served, "a")
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    streamed = post(served, "a", stream=True)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    refused = post(served, "a")
    assert code_of(refused) == (429, "requests_limit_reached")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    free = post(served, "b")
    assert free.status_code == 200 and "x-ratelimit-limit-requests" not in free.headers
    text = served.client.get("/metrics", headers=header("b")).text
    assert 'raylm_tenant_limited_total{gateway="g1",tenant="a"} 1.0' in text
    assert 'raylm_tenant_generated_tokens_total{gateway="g1",tenant="a"} 8.0' in text
    assert served.gateway.admission.in_flight == 0


def test_tokens_that_were_reserved_and_not_used_come_back(serve_here):
    ledger = Ledger()
    served = serve_here(keys=(a_key("a", limits={"tokens_per_minute": 100}),), ledger=ledger)
    prompt = [5, 6, 7, 8]
    assert post(served, "a", prompt=prompt, max_tokens=60).status_code == 200
    refused = post(served, "a", prompt=prompt, max_tokens=60)
    assert code_of(refused) == (429, "tokens_limit_reached")
    served.engine.fail_at = 0
    assert post(served, "a", prompt=prompt, max_tokens=20).status_code == 500
    served.engine.fail_at = None
    # 100 - 64 - the 4 of the prompt that was worked on = 32, and a little that has come since.
    assert post(served, "a", prompt=prompt, max_tokens=27).status_code == 200
    never = post(served, "a", prompt=prompt, max_tokens=97)
    assert code_of(never) == (400, "tokens_above_limit")


def test_limits_are_counted_once_for_two_gateways(serve_here):
    ledger = Ledger()
    key = a_key("a", limits={"requests_per_minute": 3})
    gateways = [serve_here(keys=(key,), ledger=ledger) for _ in range(2)]
    statuses = [post(gateways[i % 2], "a").status_code for i in range(6)]
    assert statuses == [200, 200, 200, 429, 429, 429]


def test_concurrency_counts_calls_until_they_end_however_they_end(serve_here):
    served = serve_here(keys=(a_key("a", limits={"max_concurrency": 1}),), step_s=0.05)

    async def work(client: httpx.AsyncClient) -> None:
        async def ask(**changes: Any) -> httpx.Response:
            return await client.post(URL, json=body(**changes), headers=header("a"))

        for stream in (False, True):
            running = asyncio.create_task(ask(max_tokens=100, stream=stream))
            await until(lambda: len(served.engine.running) == 1)
            refused = await ask()
            assert code_of(refused) == (429, "concurrency_limit_reached")
            assert refused.headers["retry-after"] == "1"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await until(lambda: not served.engine.running)
            assert (await ask(max_tokens=1)).status_code == 200

    calls(served, work)


def test_a_tenant_in_a_hurry_waits_for_few_of_anothers_requests(serve_here):
    served = serve_here(keys=(a_key("a"), a_key("b")), running=1, step_s=0.02)

    async def work(client: httpx.AsyncClient) -> None:
        tasks = []
        for count, name in enumerate("aaaaaaaaaaaabbb"):
            call = client.post(URL, json=body(seed=count), headers=header(name))
            tasks.append(asyncio.create_task(call))
            await until(lambda: served.gateway.admission.in_flight == len(tasks))
            await until(lambda: served.gateway.dispatch.turns.num_waiting == len(tasks) - 1)
        assert [r.status_code for r in await asyncio.gather(*tasks)] == [200] * 15

    calls(served, work)
    order = "".join(r.tenant for r in served.engine.seen)
    assert order[0] == "a" and order.count("b") == 3
    assert order[:7].count("b") == 3, order


def test_long_answers_cost_more_turns_than_short_ones(serve_here):
    served = serve_here(keys=(a_key("a"), a_key("b")), running=1, step_s=0.02)

    async def work(client: httpx.AsyncClient) -> None:
        tasks = []
        for name, num in [("a", 20), ("b", 2)] * 6:
            asked = body(max_tokens=num, prompt=[5])
            tasks.append(asyncio.create_task(client.post(URL, json=asked, headers=header(name))))
            await until(lambda: served.gateway.dispatch.turns.num_waiting == len(tasks) - 1)
        await asyncio.gather(*tasks)

    calls(served, work)
    order = "".join(r.tenant for r in served.engine.seen)
    # A long answer costs 41, a short one 5: all six short ones come before the third long one.
    assert order[:8].count("b") == 6 and order[8:] == "aaaa", order


def test_within_a_tenant_priority_decides(serve_here):
    served = serve_here(keys=(a_key("a", max_priority=9),), running=1, step_s=0.05)
    priorities = (0, 1, 9, 1, -5)

    async def work(client: httpx.AsyncClient) -> None:
        tasks = []
        for priority in priorities:
            call = client.post(URL, json=body(priority=priority), headers=header("a"))
            tasks.append(asyncio.create_task(call))
            await until(
                lambda: (
                    served.gateway.dispatch.turns.num_waiting == len(tasks) - 1
                    and bool(served.engine.seen)
                )
            )
        await asyncio.gather(*tasks)

    calls(served, work)
    assert [r.priority for r in served.engine.seen] == [0, 9, 1, 1, -5]


def test_when_the_queue_is_full_the_longest_line_gives_up_a_place(serve_here):
    served = serve_here(keys=(a_key("a"), a_key("b")), running=1, capacity=4, step_s=0.05)

    async def work(client: httpx.AsyncClient) -> list[int]:
        tasks = []
        for name in "aaaa":
            call = client.post(URL, json=body(), headers=header(name))
            tasks.append(asyncio.create_task(call))
            await until(lambda: served.gateway.dispatch.turns.num_waiting == len(tasks) - 1)
        more = await client.post(URL, json=body(), headers=header("a"))
        assert code_of(more) == (503, "overloaded"), "it is the longest line itself"
        other = asyncio.create_task(client.post(URL, json=body(), headers=header("b")))
        return [r.status_code for r in await asyncio.gather(*tasks, other)]

    assert calls(served, work) == [200, 200, 200, 503, 200]
    assert served.gateway.admission.in_flight == 0
    assert "".join(r.tenant for r in served.engine.seen) in ("aaba", "abaa")


def test_a_body_on_its_way_takes_nobodys_place(serve_here):
    served = serve_here(keys=(a_key("a"), a_key("b")), running=1, capacity=4, step_s=0.1)
    arriving, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        text = json.dumps(body()).encode()
        yield text[:5]
        arriving.set()
        await go_on.wait()
        yield text[5:]

    async def work(client: httpx.AsyncClient) -> list[int]:
        tasks = []
        for _ in range(4):
            call = client.post(URL, json=body(max_tokens=4 if tasks else 20), headers=header("a"))
            tasks.append(asyncio.create_task(call))
            await until(lambda: served.gateway.dispatch.turns.num_waiting == len(tasks) - 1)
        headers = header("b") | {"content-type": "application/json"}
        slow = asyncio.create_task(client.post(URL, content=slowly(), headers=headers))
        await arriving.wait()
        assert served.gateway.dispatch.turns.num_waiting == 3, "it may never be whole"
        go_on.set()
        return [r.status_code for r in await asyncio.gather(*tasks, slow)]

    assert calls(served, work) == [200, 200, 200, 503, 200]


def test_tokens_are_counted_as_requests(serve_here):
    limits = {"requests_per_minute": 2, "tokens_per_minute": 1}
    served = serve_here(keys=(a_key("a", limits=limits), a_key("b", models=("other",))))
    for path, field in (("tokenize", {"prompt": "the fox"}), ("detokenize", {"tokens": [5, 6]})):
        asked = {"model": "tiny", **field}
        answer = served.client.post(f"/v1/{path}", json=asked, headers=header("a"))
        assert answer.status_code == 200
        hidden = served.client.post(f"/v1/{path}", json=asked, headers=header("b"))
        assert code_of(hidden) == (404, "model_not_found")
    asked = {"model": "tiny", "prompt": "the fox"}
    refused = served.client.post("/v1/tokenize", json=asked, headers=header("a"))
    assert code_of(refused) == (429, "requests_limit_reached")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_who_leaves_while_waiting_frees_its_place_and_is_never_served(serve_here):
    served = serve_here(keys=(a_key("a"),), running=1, step_s=0.05)

    async def work(client: httpx.AsyncClient) -> None:
        def ask(**changes: Any) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post(URL, json=body(**changes), headers=header("a")))

        first = ask()
        await until(lambda: bool(served.engine.running))
        gone = ask(prompt="gone", stream=True)
        await until(lambda: served.gateway.dispatch.turns.num_waiting == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert served.gateway.dispatch.turns.num_waiting == 0
        assert (await first).status_code == 200
        assert (await ask()).status_code == 200

    calls(served, work)
    assert len(served.engine.seen) == 2 and served.gateway.admission.in_flight == 0


def test_a_call_of_many_answers_takes_as_many_places(serve_here):
    served = serve_here(running=4, step_s=0.02)

    async def work(client: httpx.AsyncClient) -> int:
        tasks = [asyncio.create_task(client.post(URL, json=body(n=3))) for _ in range(4)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(served.engine.running))
            await asyncio.sleep(0.001)
        assert [task.result().status_code for task in tasks] == [200] * 4
        return most

    assert calls(served, work) == 6  # two calls: one more came in while there was a place


@pytest.mark.parametrize("fails", [False, True])
def test_keys_are_in_no_log_metric_or_error(serve_here, caplog, fails):
    caplog.set_level(logging.DEBUG)
    served = serve_here(keys=(a_key("a", limits={"requests_per_minute": 1}),))
    served.engine.fail_at = 0 if fails else None
    answers = [post(served, "a") for _ in range(2)]
    answers.append(served.client.get("/metrics", headers=header("a")))
    wrong = {"Authorization": f"Bearer {key_of('wrong')}"}
    answers.append(served.client.get("/v1/models", headers=wrong))
    shown = caplog.text + "".join(a.text + str(a.headers) for a in answers)
    for secret in (key_of("a"), key_of("wrong"), "id-a", a_key("a").digest.hex()):
        assert secret not in shown
