"""Calls that begin before the deployment that counts limits has judged them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx2 as httpx
import pytest

from raylm.serve.begun import Begun
from raylm.serve.ledger import Level, Verdict
from raylm.serve.quota import Quota
from raylm.serve.tenant import Limits, Tenant
from tests.serve.in_process import URL, a_key, body, calls, header, until


def quota_that_says(*verdicts: Verdict) -> Quota:
    left = list(verdicts)

    async def take(*asked: Any) -> Verdict:
        return left.pop(0)

    async def settle(lease: str, num_tokens: int) -> None:
        pass

    return Quota(take, settle, num_gateways=1, lease_s=60, on_away=lambda: None)


def level(limit: int, remaining: int) -> Level:
    return Level(limit, remaining, 0.0)


@pytest.mark.parametrize(
    ("verdict", "num_tokens", "expected"),
    [
        (Verdict(requests=level(100, 26)), 10, True),
        (Verdict(requests=level(100, 25)), 10, False),
        (Verdict(tokens=level(100, 35)), 10, True),
        (Verdict(tokens=level(100, 34)), 10, False),
        (Verdict(requests=level(100, 90), tokens=level(100, 34)), 10, False),
        (Verdict(), 10, True),
        (Verdict(refused="concurrency", requests=level(100, 90)), 10, False),
    ],
)
def test_only_who_had_plenty_left_begins_at_once(verdict, num_tokens, expected):
    quota, tenant = quota_that_says(verdict), Tenant("id", "a", limits=Limits(100, 1000, 9))
    assert not quota.has_plenty(tenant, num_tokens), "nothing is known yet"
    try:
        asyncio.run(quota.take(tenant, num_tokens))
    except Exception as refusal:
        assert verdict.refused is not None, refusal
    assert quota.has_plenty(tenant, num_tokens) is expected
    assert not quota.has_plenty(Tenant("other", "b", limits=Limits(100)), 1)


def slow_ledger(served: Any) -> asyncio.Event:
    """The ledger answers when the event is set."""
    answers, quota = asyncio.Event(), served.gateway.dispatch.quota
    take = quota._take

    async def late(*asked: Any) -> Verdict:
        await answers.wait()
        found: Verdict = await take(*asked)
        return found

    quota._take = late
    return answers


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_works_while_the_ledger_is_asked_and_nothing_is_said_before(serve_here, stream):
    served = serve_here(keys=(a_key("a", limits={"requests_per_minute": 9}),))

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        assert (await client.post(URL, json=body(), headers=header("a"))).status_code == 200
        answers = slow_ledger(served)
        asked = body(stream=stream, max_tokens=5)
        call = asyncio.create_task(client.post(URL, json=asked, headers=header("a")))
        await until(lambda: len(served.engine.seen) == 2)
        await asyncio.sleep(0.05)
        assert not call.done()
        answers.set()
        return await call

    answer = calls(served, work)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "7"
    if not stream:
        assert answer.json()["usage"]["completion_tokens"] == 5
    assert served.gateway.admission.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_refused_after_all_gets_429_and_the_engine_stops(serve_here, stream):
    served = serve_here(
        keys=(a_key("a", limits={"requests_per_minute": 9, "max_concurrency": 1}),), step_s=0.02
    )

    async def work(client: httpx.AsyncClient) -> None:
        async def ask(**changes: Any) -> httpx.Response:
            return await client.post(URL, json=body(**changes), headers=header("a"))

        assert (await ask()).status_code == 200
        running = asyncio.create_task(ask(max_tokens=100))
        await until(lambda: len(served.engine.seen) == 2)
        answers = slow_ledger(served)
        second = asyncio.create_task(ask(max_tokens=100, stream=stream))
        await until(lambda: len(served.engine.running) == 2)
        answers.set()
        refused = await second
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "concurrency_limit_reached"
        await until(lambda: len(served.engine.running) == 1)
        # The next one is judged first.
        num_seen = len(served.engine.seen)
        assert (await ask()).status_code == 429
        assert len(served.engine.seen) == num_seen
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await until(lambda: not served.engine.running)

    calls(served, work)
    assert served.gateway.admission.in_flight == 0


async def numbers(ended: list[str]) -> AsyncGenerator[int, None]:
    try:
        for number in range(3):
            yield number
            await asyncio.sleep(0.001)
    finally:
        ended.append("source")


@pytest.mark.parametrize("num_read", [0, 1, 3, None])
def test_the_source_ends_however_far_it_was_read(num_read):
    ended: list[str] = []

    async def run() -> list[int]:
        begun = Begun(numbers(ended))
        found = []
        if num_read != 0:
            items = begun.items()
            async for item in items:
                found.append(item)
                if len(found) == num_read:
                    break
            await items.aclose()
        else:
            await asyncio.sleep(0.01)  # its first item is there, and nobody takes it
        begun.close()
        async with asyncio.timeout(5):
            while not ended:
                await asyncio.sleep(0.001)
        return found

    assert asyncio.run(run()) == [0, 1, 2][:num_read]
    assert ended == ["source"]


def test_a_source_without_items_and_one_that_fails():
    async def empty() -> AsyncGenerator[int, None]:
        return
        yield

    async def broken() -> AsyncGenerator[int, None]:
        raise RuntimeError("no")
        yield

    async def read(source: AsyncGenerator[int, None]) -> list[int]:
        return [item async for item in Begun(source).items()]

    assert asyncio.run(read(empty())) == []
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(read(broken()))
