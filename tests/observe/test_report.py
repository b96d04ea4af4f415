"""The page of a run: what is drawn and marked, and that it loads nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from raylm.observe.plots import marks_of, plots
from raylm.observe.report import write_report
from tests.observe.histories import history, step


class Page(HTMLParser):
    """Tags that are open, headings, and whatever points somewhere."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


LINES = [
    {"step": 0, "time": 0.0, "event": "start", "workers": 2},
    *(step(n, 9.0 - n / 10, mfu=0.4) for n in range(1, 41)),
    {"step": 20, "time": 20.5, "event": "resume", "workers": 1},
    {"step": 20, "time": 21.5, "event": "resume", "workers": 1},
    {"step": 24, "time": 24.5, "event": "rollback", "workers": 1},
    {"step": 40, "time": 41.0, "held_out_loss": 5.5},
]
RUN = replace(
    history("x-1", LINES, state="killed", error=None),
    skips=[{"window": 30, "step": 30, "why": "the loss is <nan>"}],
)


def test_every_curve_is_drawn_and_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    text = write_report(tmp_path, RUN).read_text()
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert not re.search(r"url\(|@import|<script", text)
    assert page.headings[:7] == [
        "Loss", "Learning rate", "Gradient norm", "Speed", "Memory of the fullest worker",
        "Share of the peak FLOP/s", "Wait for data",
    ]  # fmt: skip
    assert "Skipped windows" in page.headings
    assert "the loss is &lt;nan&gt;" in text
    assert '<p class="bad">killed</p>' in text
    assert text.count("<circle") == 1  # the one look at the held-out split
    assert "prefers-color-scheme: dark" in text


def test_restarts_and_skipped_windows_are_marked_once_for_a_step() -> None:
    assert [(mark.name, mark.x, mark.told) for mark in marks_of(RUN)] == [
        ("restart", 20, "restarted after step 20, 2 times, with 1 workers"),
        ("skipped window", 31, "skipped at step 31: the loss is <nan>"),
    ]
    assert all(plot.svg.count('class="mark ') == 2 for plot in plots(RUN))


def test_a_run_of_before_these_figures_has_the_curves_that_it_can_have(tmp_path: Path) -> None:
    old = [{k: v for k, v in step(n, 3.0).items() if k in OLD} for n in (1, 2, 3)]
    run = history("x-1", old)
    assert [plot.title for plot in plots(run)] == [
        "Loss", "Learning rate", "Gradient norm", "Speed",
    ]  # fmt: skip
    assert Page(write_report(tmp_path, run).read_text()).open == []


def test_a_run_without_a_step_has_a_page_too(tmp_path: Path) -> None:
    run = history("x-1", [], state="failed", error="no <disk>")
    text = write_report(tmp_path, run).read_text()
    assert "failed: no &lt;disk&gt;" in text
    assert Page(text).headings == []


OLD = {"step", "time", "loss", "lr", "grad_norm", "tokens", "elapsed_s", "tokens_per_s", "horizon"}
