"""Figures by tables: percentiles, goodput, the window and what came in it."""

from __future__ import annotations

import pytest

from raylm.bench.figures import distribution, figures, tokens_at, window_of
from raylm.bench.record import Record
from raylm.bench.slo import Slo, parse_duration_s, parse_slo
from raylm.errors import ConfigError
from tests.bench.records import record


@pytest.mark.parametrize(
    ("values", "found", "not_meaningful"),
    [
        ([5.0], (5.0, 5.0, 5.0, 5.0), ("p50", "p90", "p99", "p99.9")),
        ([1.0, 2.0, 3.0], (2.0, 2.8, 2.98, 2.998), ("p90", "p99", "p99.9")),
        (range(10), (4.5, 8.1, 8.91, 8.991), ("p99", "p99.9")),
        (range(99), (49.0, 88.2, 97.02, 97.902), ("p99", "p99.9")),
        (range(100), (49.5, 89.1, 98.01, 98.901), ("p99.9",)),
        (range(1001), (500.0, 900.0, 990.0, 999.0), ()),
        (range(1000), (499.5, 899.1, 989.01, 998.001), ()),
    ],
)
def test_percentiles(values, found: tuple[float, ...], not_meaningful: tuple[str, ...]) -> None:
    made = distribution(list(values))
    assert made is not None
    assert tuple(made.percentiles.values()) == pytest.approx(found)
    assert (made.count, made.max) == (len(values), max(values))
    assert made.mean == pytest.approx(sum(values) / len(values))
    assert made.not_meaningful == not_meaningful


def test_of_nothing_there_is_no_distribution() -> None:
    assert distribution([]) is None


GOOD = record(first=0.1, gaps=(0.01, 0.01, 0.01), end=0.0)


@pytest.mark.parametrize(
    ("slo", "changed", "met"),
    [
        ("ttft=101ms", GOOD, True),
        ("ttft=99ms", GOOD, False),
        ("tpot=11ms", GOOD, True),
        ("tpot=9ms", GOOD, False),
        ("e2e=140ms", GOOD, True),
        ("e2e=120ms", GOOD, False),
        ("ttft=101ms,tpot=11ms,e2e=140ms", GOOD, True),
        ("ttft=101ms,tpot=9ms,e2e=140ms", GOOD, False),
        ("ttft=10s", record(failure="timeout"), False),
        ("e2e=10s", record(failure="refused 503"), False),
        ("tpot=1ms", record(gaps=(), tokens=1), True),
        ("ttft=100ms", record(late=0.09, first=0.11), False),
    ],
)
def test_goodput_asks_for_every_bound(slo: str, changed: Record, met: bool) -> None:
    assert parse_slo(slo).is_met(changed) is met
    good = figures([changed], parse_slo(slo)).goodput
    assert good is not None
    assert good.share == met


def test_an_answer_without_text_fails_a_bound_on_its_first() -> None:
    silent = Record(0, "measured", 0.0, 0.0, (), 0.2, None, None, 7, 3)
    assert not Slo(ttft=10.0).is_met(silent)
    assert Slo(e2e=10.0).is_met(silent)
    assert figures([silent]).num_without_text == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("2min", 120), ("1.5", 1.5), (" 3 ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "1h", "s", "inf", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--timeout: .* is not a duration"):
        parse_duration_s(text, "--timeout")


@pytest.mark.parametrize("text", ["", "ttft", "tftt=1s", "ttft=1s,ttft=2s", "ttft=fast", "e2e=0s"])
def test_what_is_no_slo(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_slo(text)


def test_latencies_are_those_of_measured_whole_answers() -> None:
    found = figures(
        [
            record(phase="warm-up", first=9.0),
            record(at=1.0, first=0.2, late=0.05),
            record(at=2.0, first=0.4, gaps=(0.1,), tokens=3),
            record(at=2.5, failure="timeout", first=30.0),
            record(at=3.0, failure="refused 503"),
            record(at=3.0, failure="refused 503"),
            record(phase="cool-down", first=9.0),
        ]
    )
    assert (found.num_requests, found.num_ok, found.num_cut) == (5, 2, 0)
    assert found.failures == {"refused 503": 2, "timeout": 1}
    ttft, tpot, gap = (found.latency[name] for name in ("ttft", "tpot", "gap"))
    assert (ttft.count, ttft.max, ttft.mean) == (2, pytest.approx(0.4), pytest.approx(0.3))
    # Two pieces that were three tokens: the time between them is that of two tokens.
    assert (tpot.count, tpot.max) == (2, pytest.approx(0.05))
    assert (gap.count, gap.max) == (4, pytest.approx(0.1))
    lateness = found.latency["lateness"]
    assert (lateness.count, lateness.max) == (5, pytest.approx(0.05))
    assert found.prompt_tokens == 7
    assert found.output_tokens == pytest.approx(3.5)


def test_the_rates_are_those_of_the_window_whichever_request_it_was() -> None:
    records = [
        record(phase="warm-up", at=0.0, first=0.5, gaps=(1.0, 1.0), tokens=6),  # 0.5, 1.5, 2.5
        record(at=1.0, first=0.5, gaps=(1.0,), tokens=2),  # 1.5, 2.5
        record(at=2.0, first=0.5, gaps=(0.5,), tokens=2),  # 2.5, 3.0
        record(phase="cool-down", at=2.0, first=0.9, gaps=(0.5,), failure="cut", tokens=None),
    ]
    window = window_of([r for r in records if r.phase == "measured"])
    assert window == (1.0, 3.0)
    times, tokens = tokens_at(records, window)
    # Of the warm-up two pieces of two tokens each; of the one that was cut a piece of 10 / 7.
    assert sorted(times) == pytest.approx([1.5, 1.5, 2.5, 2.5, 2.5, 2.9, 3.0])
    assert tokens.sum() == pytest.approx(4 + 2 + 2 + 10 / 7)
    found = figures(records, Slo(ttft=0.6))
    assert found.window_s == 2.0
    assert found.output_tokens_per_s == pytest.approx((8 + 10 / 7) / 2)
    assert found.requests_per_s == pytest.approx(3 / 2)
    assert found.goodput.per_s == pytest.approx(3 / 2)


def test_requests_that_were_cut_are_no_failures() -> None:
    found = figures([record(), record(failure="cut", tokens=None)], Slo(ttft=1.0))
    assert (found.num_ok, found.num_cut, found.failures) == (1, 1, {})
    assert found.goodput.share == 1.0


def test_without_usage_pieces_are_tokens() -> None:
    found = figures([record(tokens=None, gaps=(0.1, 0.1)), record(tokens=8)])
    assert found.num_without_usage == 1
    assert found.output_tokens == pytest.approx((3 + 8) / 2)


def test_of_no_request_there_are_no_figures() -> None:
    found = figures([])
    assert (found.num_requests, found.requests_per_s, found.latency["ttft"]) == (0, 0.0, None)
    assert found.prompt_tokens is None


def test_a_record_is_the_same_when_it_was_saved() -> None:
    saved = record(index=3, failure="timeout").to_json()
    assert Record.from_json(saved).to_json() == saved
    assert saved["scheduled_at_s"] == 0.0
    assert saved["failure"] == "timeout"
