"""Texts to embed and classify take turns with all else, one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from raylm.serve.fair import FairQueue
from raylm.serve.ledger import Ledger
from tests.serve.fake_encoder import FakeEncoder
from tests.serve.in_process import a_key, calls, header, until


def embed(client: Any, name: str, *texts: list[int]) -> Any:
    asked = {"model": "tiny", "input": list(texts)}
    return client.post("/v1/embeddings", json=asked, headers=header(name))


def order(served: Any) -> str:
    """Whose texts the engine was given, one after the other."""
    return "".join(request.tenant for request in served.engine.texts)


@pytest.mark.parametrize("path", ["embeddings", "classify"])
def test_a_long_list_does_not_hold_up_another_keys_texts(serve_here, path):
    served = serve_here(
        keys=(a_key("a"), a_key("b")), engine_of=FakeEncoder, running=2, step_s=0.02
    )

    async def work(client: httpx.AsyncClient) -> None:
        asked = {"model": "tiny", "input": [[5, 6]] * 40}
        long = asyncio.create_task(client.post(f"/v1/{path}", json=asked, headers=header("a")))
        await until(lambda: len(served.engine.texts) == 4)
        short = await client.post(f"/v1/{path}", json=asked | {"input": [[7, 8]] * 3},
                                  headers=header("b"))  # fmt: skip
        assert short.status_code == 200 and not long.done()
        assert (await long).status_code == 200

    calls(served, work)
    found = order(served)
    assert (found.count("a"), found.count("b")) == (40, 3)
    # Two places: after what was in them, the two take turns.
    assert found.rindex("b") <= 12, found
    assert served.engine.most_at_once == 2


def test_texts_cost_their_tokens(serve_here):
    served = serve_here(
        keys=(a_key("a"), a_key("b")), engine_of=FakeEncoder, running=1, step_s=0.01
    )

    async def work(client: httpx.AsyncClient) -> None:
        tasks = [asyncio.create_task(embed(client, "a", *[[5] * 12] * 6))]
        await until(lambda: bool(served.engine.texts))
        tasks.append(asyncio.create_task(embed(client, "b", *[[5] * 2] * 18)))
        await until(lambda: served.gateway.dispatch.turns.num_waiting == 2)
        assert [r.status_code for r in await asyncio.gather(*tasks)] == [200, 200]

    calls(served, work)
    found = order(served)
    # Six short texts for each long one, while there are both.
    assert found.count("a") == 6 and found.count("b") == 18
    assert 4 <= found[: found.rindex("b")].count("a") <= 5, found


def test_a_call_that_waits_with_many_texts_is_one_call(serve_here):
    served = serve_here(
        keys=(a_key("a"), a_key("b"), a_key("c")), engine_of=FakeEncoder, running=1, capacity=4,
        step_s=0.01,
    )  # fmt: skip

    async def work(client: httpx.AsyncClient) -> list[int]:
        turns = served.gateway.dispatch.turns
        tasks = [asyncio.create_task(embed(client, "a", *[[5]] * 30))]
        await until(lambda: turns.num_waiting == 1 and bool(served.engine.texts))
        for _ in range(3):
            tasks.append(asyncio.create_task(embed(client, "b", [6])))
            await until(lambda: turns.num_waiting == len(tasks))
        # It is full: who waits with the most calls gives way, not with the most texts.
        tasks.append(asyncio.create_task(embed(client, "c", [7])))
        return [r.status_code for r in await asyncio.gather(*tasks)]

    assert calls(served, work) == [200, 200, 200, 503, 200]
    assert served.gateway.admission.in_flight == 0
    assert served.gateway.dispatch.turns.num_waiting == 0


def test_who_leaves_takes_its_texts_out_of_the_line(serve_here):
    served = serve_here(keys=(a_key("a"),), engine_of=FakeEncoder, running=1, step_s=0.05)

    async def work(client: httpx.AsyncClient) -> None:
        gone = asyncio.create_task(embed(client, "a", *[[5]] * 30))
        await until(lambda: bool(served.engine.texts))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert served.gateway.dispatch.turns.num_waiting == 0
        assert (await embed(client, "a", [6])).status_code == 200

    calls(served, work)
    assert len(served.engine.texts) == 2 and served.gateway.admission.in_flight == 0


def test_texts_that_were_not_read_are_not_paid_for(serve_here):
    served = serve_here(
        keys=(a_key("a", limits={"tokens_per_minute": 100}),), engine_of=FakeEncoder, running=1,
        ledger=Ledger(), fail_at=3,
    )  # fmt: skip
    broken = [[5] * 10, [5] * 3, *[[5] * 10] * 8]
    assert embed(served.client, "a", *broken).status_code == 500
    # 93 were reserved; 13 read, and 10 of a text that went in before the others were taken back.
    answer = embed(served.client, "a", *[[5] * 7] * 10)
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) in range(7, 20)


def test_loads_count_calls_and_not_their_texts():
    queue = FairQueue()
    texts = [queue.add("a", weight=1, priority=0, call="one") for _ in range(5)]
    queue.add("a", weight=1, priority=0)
    queue.add("b", weight=2, priority=0)
    assert (queue.loads(), len(queue)) == ({"a": 2, "b": 0.5}, 3)
    for ticket in texts[1:]:
        queue.remove(ticket)
    assert queue.loads()["a"] == 2
    assert queue.pop() == texts[0]
    assert (queue.loads(), len(queue)) == ({"a": 1, "b": 0.5}, 2)
