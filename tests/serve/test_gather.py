"""Streams: what is ready together comes together; errors and closing reach the source."""

from __future__ import annotations

import asyncio

import pytest

from raylm.serve.gather import batched, merged


async def numbers(n: int, closed: list[str], *, fail: bool = False, pause_s: float = 0.0):
    try:
        for i in range(n):
            await asyncio.sleep(pause_s)
            yield i
        if fail:
            raise ValueError("broken")
    finally:
        closed.append("closed")


def test_items_that_wait_come_as_one_batch():
    async def run():
        closed: list[str] = []
        found = []
        async for batch in batched(numbers(10, closed)):
            found.append(list(batch))
            await asyncio.sleep(0.01)
        assert [item for batch in found for item in batch] == list(range(10))
        assert len(found) < 5 and closed == ["closed"]

    asyncio.run(run())


def test_items_come_one_by_one_when_they_are_slow():
    async def run():
        found = [list(b) async for b in batched(numbers(3, [], pause_s=0.01))]
        assert found == [[0], [1], [2]]

    asyncio.run(run())


def test_errors_come_after_the_items_before_them():
    async def run():
        found: list[int] = []
        with pytest.raises(ValueError, match="broken"):
            async for batch in batched(numbers(3, [], fail=True)):
                found += batch
        assert found == [0, 1, 2]

    asyncio.run(run())


def test_closing_early_closes_the_source():
    async def run():
        closed: list[str] = []
        stream = batched(numbers(1000, closed, pause_s=0.001))
        async for _ in stream:
            break
        await stream.aclose()
        assert closed == ["closed"]

    asyncio.run(run())


@pytest.mark.parametrize("num", [1, 3])
def test_merged_streams_keep_their_order_and_are_closed(num):
    async def run():
        closed: list[str] = []
        found: dict[int, list[int]] = {i: [] for i in range(num)}
        sources = [batched(numbers(5, closed, pause_s=0.001 * i)) for i in range(num)]
        async for items in merged(sources):
            for index, item in items:
                found[index].append(item)
        assert found == {i: list(range(5)) for i in range(num)}
        assert closed == ["closed"] * num

    asyncio.run(run())


@pytest.mark.parametrize("num", [1, 3])
def test_an_error_of_one_ends_all(num):
    async def run():
        closed: list[str] = []
        sources = [batched(numbers(3, closed, fail=i == 0, pause_s=0.01 * i)) for i in range(num)]
        with pytest.raises(ValueError, match="broken"):
            async for _ in merged(sources):
                pass
        assert closed == ["closed"] * num

    asyncio.run(run())
