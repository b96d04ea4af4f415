"""Limits counted, with time as a parameter."""

from __future__ import annotations

import pytest

from raylm.serve.ledger import Ledger, Verdict
from raylm.serve.quota import rate_headers, share
from raylm.serve.tenant import Limits


def take(
    ledger: Ledger,
    lease: str,
    limits: Limits,
    now_s: float,
    num_tokens: int = 10,
    tenant: str = "a",
) -> Verdict:
    return ledger.take(lease, tenant, limits, num_tokens, now_s=now_s, lease_s=60)


def test_requests_are_a_bucket_of_a_minute_that_fills_evenly():
    ledger, limits = Ledger(), Limits(requests_per_minute=6)
    assert [take(ledger, str(i), limits, 0.0).refused for i in range(7)] == [None] * 6 + [
        "requests"
    ]
    refused = take(ledger, "x", limits, 4.0)
    assert refused.refused == "requests" and refused.retry_after_s == pytest.approx(6.0)
    assert take(ledger, "y", limits, 4.0 + refused.retry_after_s).refused is None
    assert take(ledger, "z", limits, 10.0).refused == "requests"
    idle = [take(ledger, f"later-{i}", limits, 1000.0).refused for i in range(7)]
    assert idle.count(None) == 6, "no more than a minute's worth is saved up"


def test_tokens_are_reserved_and_what_was_not_used_comes_back():
    ledger, limits = Ledger(), Limits(tokens_per_minute=100)
    first = take(ledger, "1", limits, 0.0, num_tokens=80)
    assert first.tokens is not None and first.tokens.remaining == 20
    refused = take(ledger, "2", limits, 0.0, num_tokens=50)
    assert refused.refused == "tokens" and refused.retry_after_s == pytest.approx(30 * 0.6)
    ledger.settle("1", 30, now_s=0.0)
    second = take(ledger, "3", limits, 0.0, num_tokens=70)
    assert second.refused is None and second.tokens is not None and second.tokens.remaining == 0
    assert second.tokens.reset_s == pytest.approx(60.0)


def test_a_refused_call_takes_nothing():
    ledger, limits = Ledger(), Limits(requests_per_minute=2, tokens_per_minute=100)
    take(ledger, "1", limits, 0.0, num_tokens=90)
    for i in range(5):
        assert take(ledger, f"no-{i}", limits, 0.0, num_tokens=90).refused == "tokens"
    last = take(ledger, "2", limits, 0.0, num_tokens=10)
    assert last.refused is None and last.requests is not None and last.requests.remaining == 0


def test_places_are_held_until_the_end_or_until_their_time_is_over():
    ledger, limits = Ledger(), Limits(max_concurrency=2)
    assert [take(ledger, str(i), limits, 0.0).refused for i in range(3)] == [
        None,
        None,
        "concurrency",
    ]
    ledger.settle("0", 5, now_s=1.0)
    assert take(ledger, "3", limits, 1.0).refused is None
    assert take(ledger, "4", limits, 59.0).refused == "concurrency"
    assert take(ledger, "5", limits, 60.0).refused is None, "the gateway that had 1 is gone"
    ledger.settle("1", 5, now_s=61.0)  # not gone after all: it is not counted twice
    assert take(ledger, "6", limits, 60.5).refused == "concurrency"


def test_tenants_have_accounts_of_their_own():
    ledger, limits = Ledger(), Limits(requests_per_minute=1)
    assert take(ledger, "1", limits, 0.0, tenant="a").refused is None
    assert take(ledger, "2", limits, 0.0, tenant="b").refused is None
    assert take(ledger, "3", limits, 0.0, tenant="a").refused == "requests"


def test_a_new_limit_keeps_what_was_taken():
    ledger = Ledger()
    for i in range(3):
        take(ledger, str(i), Limits(requests_per_minute=3), 0.0)
    raised = take(ledger, "x", Limits(requests_per_minute=5), 0.0)
    assert raised.refused is None and raised.requests is not None and raised.requests.remaining == 1
    assert take(ledger, "y", Limits(requests_per_minute=3), 0.0).refused == "requests"


def test_a_gateway_alone_has_its_part_and_never_nothing():
    assert share(Limits(10, None, 1), 4) == Limits(3, None, 1)


def test_headers_are_those_of_openai():
    limits = Limits(requests_per_minute=6, tokens_per_minute=100)
    assert rate_headers(take(Ledger(), "1", limits, 0.0, num_tokens=50)) == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10.000s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "30.000s",
    }
