"""The page of a run: whole, loads nothing, and has the figures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from raylm.bench.ceiling import Ceiling
from raylm.bench.compare import compare
from raylm.bench.plots import cumulative
from raylm.bench.report import in_ms, write_report
from raylm.bench.result import LevelResult, warnings
from tests.bench.records import record
from tests.bench.test_compare import run
from tests.observe.test_report import Page

FAILED = replace(record(index=9, at=2.0, failure="http 500"), detail="oh <no>")


def two_levels():
    slow = run(2.0, name="16/s").levels[0]
    slow = replace(slow, value=16.0, records=(*slow.records, FAILED))
    made = run()
    return replace(made, levels=(*made.levels, slow), ceiling=Ceiling(100.0, 6400.0, 64, 0.9))


def test_the_page_is_whole_loads_nothing_and_has_the_figures(tmp_path: Path) -> None:
    made = two_levels()
    path = tmp_path / "report.html"
    write_report(made, path, compare(run(0.5), made))
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert not re.search(r"url\(|@import|<script", text)
    # The one address in it is that of the server that was measured.
    assert set(re.findall(r"https?://[^\s<\"]+", text)) == {made.settings.url}
    assert page.headings == [
        "Time to first token over throughput", "Time per output token over throughput",
        "Goodput over load", "Beside the older run",
        "8/s", "Latencies, cumulative", "Time to first token, in its course",
        "16/s", "Latencies, cumulative", "Time to first token, in its course",
        "How it was measured",
    ]  # fmt: skip
    assert "prefers-color-scheme: dark" in text
    for level in made.levels:
        ttft = level.figures(made.slo).latency["ttft"]
        assert f">{in_ms(ttft.percentiles['p99'])}</td>" in text
    assert "oh &lt;no&gt;" in text
    assert text.count('class="mark skip"') == 1
    assert 'class="n weak"' in text  # p99.9 of 200 requests
    assert "slower in" in text
    assert "100 requests/s of 64 pieces" in text


def test_a_level_without_an_answer_has_a_page_too(tmp_path: Path) -> None:
    made = replace(run(), levels=(LevelResult("8/s", 8.0, None, 0, 0.0, (FAILED,)),))
    path = tmp_path / "report.html"
    write_report(made, path)
    assert Page(path.read_text()).open == []
    assert "http 500" in path.read_text()


def test_the_cumulative_curve_goes_to_all_requests() -> None:
    points = cumulative([record(first=0.3), record(first=0.1)], "ttft")
    assert points == [(pytest.approx(100), 50.0), (pytest.approx(300), 100.0)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00042, "0.42"), (0.0123, "12.3"), (1.2344, "1,234"), (0.1, "100")]
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert in_ms(seconds) == text


def with_level(**changes):
    made = run()
    return replace(made, levels=(replace(made.levels[0], **changes),))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (run(), None),
        (replace(run(), stopped="SIGINT"), "partial: ended by SIGINT"),
        (with_level(cut="--max-requests"), "partial: ended by --max-requests"),
        (with_level(busy_share=0.9), "busy for 90% of the time"),
        (with_level(num_waited=3), "3 requests waited for --max-in-flight"),
        (with_level(records=(record(late=0.05),)), "the client was late: 50 ms at p99"),
        (with_level(records=(record(tokens=None),)), "1 answers came without usage"),
        (with_level(records=(replace(record(), chunks_at_s=()),)), "1 answers had no text"),
        (replace(run(), ceiling=Ceiling(1.0, 40.0, 64, 1.0)), "near what this client can take, 40"),
        (replace(run(), ceiling=Ceiling(1.0, 80.0, 64, 1.0)), None),
    ],
)
def test_what_makes_figures_say_less_is_told(made, told: str | None) -> None:
    found = warnings(made)
    assert (not found) if told is None else any(told in line for line in found)
