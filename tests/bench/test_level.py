"""Levels of load, with answers made here: when requests go out, and which are measured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter

import pytest

from raylm.bench.level import Level, Quota
from raylm.bench.record import Draft

DEADLINE_S = 30.0


class Asked:
    """Answers of one piece after a time, and how many were on their way at once."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.bodies: list[bytes] = []
        self.now = self.most = self.num_cut = 0

    async def __call__(self, body: bytes, draft: Draft) -> None:
        draft.sent_at_s = time.perf_counter() - draft.begun_s
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.num_cut += 1
            raise
        finally:
            self.now -= 1
        draft.chunks_at_s.append(time.perf_counter() - draft.begun_s)


def level(asked, quota: Quota, *, max_in_flight: int = 100, max_requests: int = 1000) -> Level:
    return Level(asked, lambda index: b"%d" % index, quota, max_in_flight=max_in_flight,
                 max_requests=max_requests)  # fmt: skip


def run(coroutine) -> None:
    """Run it, and see that no task is left."""

    async def alone() -> None:
        await asyncio.wait_for(coroutine, DEADLINE_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())


def phases(found: Level) -> Counter[str]:
    return Counter(record.phase for record in found.records if record.is_ok)


@pytest.mark.parametrize(
    ("quota", "index", "at_s", "since_s", "phase"),
    [
        (Quota(2, 3, None), 1, 0.0, None, "warm-up"),
        (Quota(2, 3, None), 2, 0.0, None, "measured"),
        (Quota(2, 3, None), 4, 9.0, 0.0, "measured"),
        (Quota(2, 3, None), 5, 9.0, 0.0, "cool-down"),
        (Quota(0, None, 5.0), 0, 7.0, None, "measured"),
        (Quota(0, None, 5.0), 9, 11.9, 7.0, "measured"),
        (Quota(0, None, 5.0), 9, 12.0, 7.0, "cool-down"),
    ],
)
def test_phases(quota: Quota, index: int, at_s: float, since_s: float | None, phase: str) -> None:
    assert quota.phase(index, at_s, since_s) == phase


def test_a_closed_loop_keeps_its_clients_busy_until_the_measured_requests_have_ended() -> None:
    asked = Asked(0.02)
    found = level(asked, Quota(4, 20, None))
    run(found.closed_loop(4))
    assert asked.most == 4
    assert phases(found)["measured"] == 20
    assert phases(found)["warm-up"] == 4
    # While the last measured one was on its way, the others had fillers.
    assert len(found.records) - 24 >= 1
    assert asked.now == 0
    assert asked.bodies[:24] == [b"%d" % i for i in range(24)]
    assert found.cut is None
    ended = max(record.ended_at_s for record in found.records if record.phase == "measured")
    assert all(r.failure == "cut" for r in found.records if r.ended_at_s > ended)


def test_a_closed_loop_for_a_time() -> None:
    found = level(Asked(0.01), Quota(1, None, 0.3))
    run(found.closed_loop(2))
    measured = [record for record in found.records if record.phase == "measured"]
    since = min(record.scheduled_at_s for record in measured)
    assert len(measured) >= 2
    assert all(record.scheduled_at_s - since < 0.3 for record in measured)
    assert max(record.ended_at_s for record in found.records) - since >= 0.3


def test_an_open_loop_sends_whatever_becomes_of_those_before() -> None:
    asked = Asked(0.5)
    found = level(asked, Quota(0, 20, None))
    run(found.open_loop(i * 0.01 for i in range(20)))
    assert asked.most == 20
    assert [record.scheduled_at_s for record in sorted(found.records, key=lambda r: r.index)] == (
        [i * 0.01 for i in range(20)]
    )


def test_arrivals_go_on_until_the_measured_requests_have_ended() -> None:
    asked = Asked(0.2)
    found = level(asked, Quota(3, 5, None))
    run(found.open_loop(i * 0.01 for i in itertools.count()))
    assert phases(found)["warm-up"] == 3
    assert phases(found)["measured"] == 5
    assert asked.num_cut > 0
    cut = [record for record in found.records if record.failure == "cut"]
    assert {record.phase for record in cut} == {"cool-down"}
    assert len(cut) == asked.num_cut


def test_time_counts_from_when_a_request_was_due_if_the_client_is_late() -> None:
    asked = Asked()

    async def blocking(body: bytes, draft: Draft) -> None:
        await asked(body, draft)
        if draft.index == 0:
            time.sleep(0.5)  # the client's own thread stands still

    found = level(blocking, Quota(0, 10, None))
    run(found.open_loop(i * 0.02 for i in range(10)))
    second = next(record for record in found.records if record.index == 1)
    assert second.lateness_s >= 0.4
    assert second.ttft_s >= second.lateness_s
    assert found.busy_share < 1.0  # it slept: it did not work


def test_more_than_may_be_in_flight_wait_and_their_time_counts() -> None:
    asked = Asked(0.2)
    found = level(asked, Quota(0, 6, None), max_in_flight=2)
    run(found.open_loop([0.0] * 6))
    assert asked.most == 2
    assert found.num_waited == 4
    assert sorted(round(r.ttft_s / 0.2 - 0.2) for r in found.records)[-1] >= 2
    last = max(found.records, key=lambda record: record.ended_at_s)
    assert last.lateness_s >= 0.35


def test_stopped_in_the_middle_what_was_on_its_way_is_cut() -> None:
    asked = Asked(20.0)
    found = level(asked, Quota(0, 50, None))

    async def stopped() -> None:
        asyncio.get_running_loop().call_later(0.3, found.stop, "SIGINT")
        await found.open_loop(i * 0.01 for i in itertools.count())

    run(stopped())
    assert found.cut == "SIGINT"
    assert {record.failure for record in found.records} == {"cut"}
    assert asked.now == 0


def test_no_more_requests_than_allowed() -> None:
    asked = Asked()
    found = level(asked, Quota(0, None, 60.0), max_requests=25)
    run(found.closed_loop(3))
    assert found.cut == "--max-requests"
    assert len(found.records) == len(asked.bodies) == 25


def test_a_client_does_not_hammer_a_server_that_refuses() -> None:
    async def refusing(body: bytes, draft: Draft) -> None:
        draft.fail("refused 503")

    found = level(refusing, Quota(0, None, 0.5))
    run(found.closed_loop(1))
    assert 1 <= len(found.records) <= 11


def test_a_defect_of_ours_is_no_failure_of_the_server() -> None:
    async def defect(body: bytes, draft: Draft) -> None:
        raise AssertionError("ours")

    for loop in ("closed", "open"):
        found = level(defect, Quota(0, 5, None))
        with pytest.raises(AssertionError, match="ours"):
            run(found.closed_loop(2) if loop == "closed" else found.open_loop([0.0] * 5))
