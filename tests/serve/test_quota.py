"""Limits while the deployment that counts them is away: answers go on, with a part of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raylm.serve import aside
from raylm.serve.ledger import Verdict
from raylm.serve.quota import LimitReached, Quota
from raylm.serve.tenant import Limits, Tenant


class Counting:
    """A ledger that says yes, does not answer, or breaks; and what it was asked."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.taken: list[str] = []
        self.settled: list[tuple[str, int]] = []
        self.num_alone = 0

    async def take(self, lease: str, *rest: Any) -> Verdict:
        self.taken.append(lease)
        if self.mode == "broken":
            raise RuntimeError("dead")
        if self.mode == "frozen":
            await asyncio.sleep(60)
        return Verdict()

    async def settle(self, lease: str, num_tokens: int) -> None:
        self.settled.append((lease, num_tokens))

    def alone(self) -> None:
        self.num_alone += 1

    def quota(self, num_gateways: int = 2) -> Quota:
        return Quota(
            self.take, self.settle, num_gateways=num_gateways, lease_s=60, on_away=self.alone
        )


def tenant(**limits: int) -> Tenant:
    return Tenant("id", "a", limits=Limits(**limits))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "PATIENCE_S", 0.05)


def test_a_tenant_without_limits_costs_no_message():
    counting = Counting("broken")
    lease = asyncio.run(counting.quota().take(tenant(), 10))
    lease.settle(10)
    assert (counting.taken, counting.settled, lease.headers) == ([], [], {})


def test_a_call_is_one_message_and_its_end_another():
    counting = Counting("works")

    async def work() -> None:
        lease = await counting.quota().take(tenant(requests_per_minute=5), 10)
        lease.settle(7)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert counting.settled == [(counting.taken[0], 7)] and counting.num_alone == 0


def test_a_client_that_leaves_while_its_call_is_counted_gives_its_place_back():
    counting = Counting("frozen")

    async def work() -> None:
        asking = asyncio.create_task(counting.quota().take(tenant(max_concurrency=1), 10))
        while not counting.taken:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert counting.settled == [(counting.taken[0], 0)]


@pytest.mark.parametrize("mode", ["broken", "frozen"])
def test_without_the_ledger_a_gateway_counts_its_part_of_every_limit(mode):
    counting = Counting(mode)

    async def work() -> list[str]:
        quota, found = counting.quota(num_gateways=2), []
        for _ in range(5):
            try:
                lease = await quota.take(tenant(requests_per_minute=6), 10)
                lease.settle(10)
                found.append("in")
            except LimitReached as error:
                assert error.status == 429
                found.append("refused")
        await asyncio.sleep(0.01)
        return found

    assert asyncio.run(work()) == ["in"] * 3 + ["refused"] * 2
    assert len(counting.taken) == 1, "it is asked once, and then left alone for a while"
    assert counting.num_alone == 5
    # It may have counted the call and only the answer was lost; nothing else is its business.
    assert counting.settled == [(counting.taken[0], 0)]


def test_the_ledger_is_asked_again_after_a_while(monkeypatch):
    monkeypatch.setattr(aside, "AWAY_S", 0.0)
    counting = Counting("broken")

    async def work() -> None:
        quota = counting.quota()
        await quota.take(tenant(requests_per_minute=5), 10)
        counting.mode = "works"
        await quota.take(tenant(requests_per_minute=5), 10)

    asyncio.run(work())
    assert len(counting.taken) == 2 and counting.num_alone == 1


def test_alone_a_call_as_large_as_the_whole_limit_still_goes_in():
    async def work() -> None:
        quota = Counting("broken").quota(num_gateways=4)
        lease = await quota.take(tenant(tokens_per_minute=100), 100)
        lease.settle(100)
        with pytest.raises(LimitReached):
            await quota.take(tenant(tokens_per_minute=100), 1)

    asyncio.run(work())
