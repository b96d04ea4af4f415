"""Fair sharing by tokens: order, lifts and weights by table, and a simulation in virtual time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest

from raylm.serve.fair import FairQueue, Ticket, overflow


def add(queue: FairQueue, tenant: str, weight: float = 1.0, priority: int = 0) -> Ticket:
    return queue.add(tenant, weight=weight, priority=priority)


def serve(queue: FairQueue, num_output: int = 10) -> str:
    """The tenant that is served next, and then charged."""
    ticket = queue.pop()
    assert ticket is not None
    queue.charge(ticket, num_output=num_output)
    return ticket.tenant


def test_tenants_with_as_much_waiting_take_turns():
    queue = FairQueue()
    for tenant in "aaabbb":
        add(queue, tenant)
    assert [serve(queue) for _ in range(6)] == list("ababab")
    assert queue.pop() is None and len(queue) == 0


def test_service_is_in_proportion_to_the_weights():
    queue = FairQueue()
    for _ in range(40):
        add(queue, "heavy", weight=3.0)
        add(queue, "light", weight=1.0)
    served = [serve(queue) for _ in range(40)]
    assert served.count("heavy") == 30 and served.count("light") == 10


def test_an_answers_tokens_cost_twice_the_prompts():
    queue = FairQueue()
    for tenant in ("reads", "writes"):
        for _ in range(5):
            add(queue, tenant)
    served = []
    for _ in range(6):
        ticket = queue.pop()
        assert ticket is not None
        served.append(ticket.tenant)
        writes = ticket.tenant == "writes"
        queue.charge(ticket, num_input=0 if writes else 10, num_output=10 if writes else 0)
    assert served.count("reads") == 4 and served.count("writes") == 2


def test_within_a_tenant_higher_priority_goes_first_then_first_come():
    queue = FairQueue()
    tickets = [add(queue, "a", priority=p) for p in (0, 5, -1, 5, 0)]
    order = [queue.pop() for _ in tickets]
    assert order == [tickets[i] for i in (1, 3, 0, 4, 2)]


def test_priority_of_one_tenant_does_not_overtake_another():
    queue = FairQueue()
    add(queue, "a", priority=0)
    add(queue, "b", priority=100)
    assert [serve(queue) for _ in range(2)] == ["a", "b"]


def test_who_was_idle_has_saved_up_nothing():
    queue = FairQueue()
    for _ in range(30):
        add(queue, "busy")
    for _ in range(10):
        serve(queue)
    for _ in range(5):
        add(queue, "late")  # lifted to `busy`, not 10 turns ahead of it
    assert [serve(queue) for _ in range(4)] == ["busy", "late", "busy", "late"]


def test_after_an_empty_queue_the_last_one_sets_the_level():
    queue = FairQueue()
    for _ in range(5):
        add(queue, "a")
        serve(queue, num_output=100)
    for tenant in "bbbba":
        add(queue, tenant)
    # Without the lift b would be 1000 behind, and have all its turns first.
    assert [serve(queue, num_output=100) for _ in range(5)] == list("babbb")


def test_who_leaves_the_line_is_not_served():
    queue = FairQueue()
    gone, kept = add(queue, "a"), add(queue, "a")
    queue.remove(gone)
    assert queue.pop() == kept and queue.pop() is None


@pytest.mark.parametrize(
    ("loads", "tenant", "weight", "gives_up"),
    [
        ({}, "a", 1.0, None),
        ({"a": 9.0}, "a", 1.0, None),
        ({"a": 9.0}, "b", 1.0, "a"),
        ({"a": 2.0, "b": 1.0}, "b", 1.0, None),  # a swap would only turn the tables
        ({"a": 3.0, "b": 1.0}, "b", 1.0, "a"),
        ({"a": 3.0, "b": 8.0}, "c", 0.25, "b"),
        ({"a": 3.0, "b": 4.0}, "c", 0.25, None),
    ],
)
def test_the_longest_line_for_its_weight_gives_up_a_place(loads, tenant, weight, gives_up):
    assert overflow(loads, tenant, weight) == gives_up


@dataclass(frozen=True)
class Load:
    """A tenant's requests: so many a second, as a share of what the engines do."""

    tenant: str
    share: float


PLACES = 64
TOKEN_S = 0.02
MAX_WAITING = 256


def latencies(loads: list[Load], *, seed: int, told_apart: bool = True) -> dict[str, list[float]]:
    """Seconds from each request's arrival to its last token, by tenant, in virtual time.

    Poisson arrivals of answers of 20 to 180 tokens for 300 s, on engines with `PLACES` places
    that give a token every `TOKEN_S` each; the queue is bounded as the gateway's is. Without
    `told_apart` all are one tenant: first come, first served.
    """
    mean_s = 100 * TOKEN_S
    events: list[tuple[float, int, str, int]] = []  # (time, number, who arrives or "", tokens)
    for index, load in enumerate(loads):
        draw = random.Random(seed * 100 + index)  # a tenant's requests are the same in all runs
        at = 0.0
        while (at := at + draw.expovariate(load.share * PLACES / mean_s)) < 300:
            events.append((at, len(events), load.tenant, draw.randint(20, 180)))
    heapq.heapify(events)
    queue, num_running, number = FairQueue(), 0, len(events)
    arrived: dict[Ticket, tuple[float, str, int]] = {}
    found: dict[str, list[float]] = {load.tenant: [] for load in loads}
    while events:
        now, _, who, num_tokens = heapq.heappop(events)
        if who:
            tenant = who if told_apart else "all"
            if len(queue) >= MAX_WAITING:
                victim = overflow(queue.loads(), tenant, 1.0)
                last = queue.last_of(victim) if victim else None
                if last is None:
                    continue
                queue.remove(last)
            arrived[add(queue, tenant)] = (now, who, num_tokens)
        else:
            num_running -= 1
        while num_running < PLACES and (ticket := queue.pop()) is not None:
            num_running, number = num_running + 1, number + 1
            since, who, num_tokens = arrived[ticket]
            end = now + num_tokens * TOKEN_S
            found[who].append(end - since)
            queue.charge(ticket, num_input=50, num_output=num_tokens)
            heapq.heappush(events, (end, number, "", 0))
    return found


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_times_its_share_by_one_tenant_hardly_moves_another(seed):
    quiet = Load("quiet", 0.4)
    calm = latencies([quiet, Load("noisy", 0.5)], seed=seed)
    storm = latencies([quiet, Load("noisy", 5.0)], seed=seed)
    assert len(storm["quiet"]) == len(calm["quiet"]) > 3_500, "none was turned away"
    assert p99(storm["quiet"]) < 1.2 * p99(calm["quiet"])
    assert p99(storm["noisy"]) > 2 * p99(storm["quiet"])
    mixed = latencies([quiet, Load("noisy", 5.0)], seed=seed, told_apart=False)
    assert p99(mixed["quiet"]) > 2 * p99(calm["quiet"]), "it takes the sharing to hold this"


def test_what_is_not_wanted_by_one_is_given_to_the_others():
    storm = latencies([Load("quiet", 0.4), Load("noisy", 5.0)], seed=1)
    done = sum(len(values) for values in storm.values())
    assert done * 100 * TOKEN_S / PLACES / 300 > 0.98, "no place is left empty"
