"""A run beside an older one: ratios, their intervals, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylm.bench.compare import Comparison, compare, differences, mean, percentile, ratio
from raylm.bench.result import LevelResult, Run, load_run, save_run
from raylm.bench.slo import Slo
from raylm.errors import ConfigError
from tests.bench.records import SETTINGS, record


def run(slowdown: float = 1.0, *, num: int = 200, seed: int = 0, name: str = "8/s") -> Run:
    """Answers whose every time is so many times longer than it was."""
    random = np.random.default_rng(seed)
    records = tuple(
        record(
            index=i,
            at=i / 8,
            first=slowdown * (0.1 + 0.05 * random.random()),
            gaps=tuple(slowdown * (0.01 + 0.005 * random.random()) for _ in range(3)),
        )
        for i in range(num)
    )
    level = LevelResult(name, 8.0, None, 0, 0.1, records)
    return Run("2026-01-01T00:00:00+00:00", SETTINGS, Slo(ttft=0.2), None, {"cores": 2},
               {"raylm": "0"}, None, (level,))  # fmt: skip


def found(comparison: Comparison) -> dict[str, str]:
    return {r.figure: r.verdict for r in comparison.ratios}


def test_a_slower_run_is_told_with_its_factor() -> None:
    made = compare(run(seed=1), run(1.3, seed=2))
    ttft = next(r for r in made.ratios if r.figure == "ttft p50")
    assert ttft.ratio == pytest.approx(1.3, rel=0.05)
    assert 1.2 < ttft.low < ttft.ratio < ttft.high < 1.4
    verdicts = found(made)
    for figure in ("ttft p50", "ttft p99", "tpot p50", "e2e p50"):
        assert verdicts[figure] == "slower"
    # The rate of an open loop is that of its arrivals.
    assert verdicts["output tokens/s"] == "no difference seen"
    assert made.verdict.startswith("slower in 6 of 7 figures, most in ")
    assert {r.figure for r in made.slower_than(1.2)} == set(verdicts) - {"output tokens/s"}
    assert made.slower_than(1.5) == []


def test_a_faster_run_and_an_equal_one() -> None:
    assert found(compare(run(seed=1), run(0.5, seed=2)))["e2e p50"] == "faster"
    same = compare(run(), run())
    assert {r.ratio for r in same.ratios} == {1.0}
    assert same.verdict == "no difference beyond the intervals"
    assert same.slower_than(1.0) == []


def test_of_few_requests_nothing_is_claimed() -> None:
    made = compare(run(num=9), run(3.0, num=9))
    latencies = [r for r in made.ratios if r.figure != "output tokens/s"]
    assert [r.figure for r in latencies] == ["ttft p50", "tpot p50", "e2e p50"]
    assert {(r.low, r.high, r.verdict) for r in latencies} == {(None, None, "no difference seen")}
    assert made.slower_than(1.1) == []


@pytest.mark.parametrize(("is_rate", "verdict"), [(True, "faster"), (False, "slower")])
def test_of_a_rate_more_is_better(is_rate: bool, verdict: str) -> None:
    random = np.random.default_rng(0)
    old, new = random.normal(10, 1, 50), random.normal(20, 1, 50)
    made = ratio("x", "f", old, new, mean, np.random.default_rng(0), is_rate=is_rate)
    assert made.ratio == pytest.approx(2, rel=0.1)
    assert made.slowdown == pytest.approx(made.ratio if not is_rate else 1 / made.ratio)
    assert made.verdict == verdict


def test_of_a_figure_that_may_be_nought_no_ratio_is_claimed() -> None:
    old, new = np.array([0.0] * 6 + [1.0] * 7), np.full(13, 5.0)
    made = ratio("x", "f", old, new, percentile(50), np.random.default_rng(0), is_rate=False)
    assert (made.ratio, made.low, made.verdict) == (5.0, None, "no difference seen")


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        old, new = random.exponential(1.0, 60), random.exponential(1.5, 60)
        made = ratio("x", "f", old, new, percentile(50), random, is_rate=False)
        held += made.low <= 1.5 <= made.high
    assert 88 <= held <= 100


def test_other_loads_and_missing_levels_are_told() -> None:
    other = replace(run(name="16/s"), settings=replace(SETTINGS, max_tokens=9, url="http://b"))
    made = compare(run(), other)
    assert made.missing == ("16/s", "8/s")
    assert made.other_settings == ("max_tokens: 16 before, 9 now",)
    assert made.verdict == "nothing to compare: no level is in both"
    assert differences(SETTINGS, replace(SETTINGS, levels=(1.0,), prompts="elsewhere")) == ()
    assert differences(SETTINGS, replace(SETTINGS, file_sha256="ab")) != ()


def test_that_more_failed_is_told_beside_latencies_of_the_others() -> None:
    made = run()
    level = made.levels[0]
    worse = replace(level.records[3], failure="refused 503")
    records = (*level.records[:3], worse, *level.records[4:])
    now = replace(made, levels=(replace(level, records=records),))
    assert compare(made, now).failures == ("8/s: none failed before, 0.5% failed now",)
    assert compare(made, made).failures == ()


def test_what_the_older_run_had_to_beware_of_is_told() -> None:
    assert compare(replace(run(), stopped="SIGINT"), run()).doubts[0].startswith("partial: ")


def test_a_saved_run_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save_run(run(), path)
    once = load_run(path)
    save_run(once, path)
    assert load_run(path) == once
    # Times are written to the microsecond.
    assert once.levels[0].records[5].ttft_s == pytest.approx(run().levels[0].records[5].ttft_s)
    assert compare(load_run(path), run()).slower_than(1.0) == []


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 9}', "[]"])
def test_what_is_no_run_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json is no run that"):
        load_run(path)
