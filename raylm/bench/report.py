"""The page of a run: figures and plots of every level of load, and how they came about."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.bench.compare import Comparison
from raylm.bench.figures import PERCENTILES, Distribution, Figures
from raylm.bench.plots import of_level, over_load
from raylm.bench.result import LevelResult, Run, warnings
from raylm.observe.chart import Plot
from raylm.observe.page import render

LATENCY_NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "gap": "between pieces of text",
    "e2e": "to the end of the answer",
    "lateness": "lateness of the client",
}


def write_report(run: Run, path: Path, comparison: Comparison | None = None) -> None:
    """Write one file that loads nothing."""
    found = [level.figures(run.slo) for level in run.levels]
    values = {
        "run": run,
        "warnings": warnings(run),
        "levels": [
            {"name": level.name, "figures": figures, "rows": latency_rows(figures),
             "plots": _drawn(of_level(level)), "details": details(level)}
            for level, figures in zip(run.levels, found, strict=True)
        ],
        "plots": _drawn(over_load(run.levels, found)),
        "percentiles": list(PERCENTILES),
        "comparison": comparison,
        "settings": {k: v for k, v in asdict(run.settings).items() if v not in (None, ())},
    }  # fmt: skip
    write_atomic(path, render("raylm.bench", "report.html.jinja", values))


def latency_rows(figures: Figures) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Of each latency its name, and (ms, whether it means something) of percentiles, maximum and
    mean.
    """
    return [
        (LATENCY_NAMES[name], _cells(found))
        for name, found in figures.latency.items()
        if found is not None
    ]


def details(level: LevelResult) -> dict[str, str]:
    """The first words that came with each class of failure."""
    return {
        record.failure: record.detail
        for record in reversed(level.records)
        if record.failure is not None and record.detail and record.phase == "measured"
    }


def in_ms(seconds: float) -> str:
    """`0.42`, `12.3`, `1,234`: three digits or whole milliseconds."""
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _cells(found: Distribution) -> list[tuple[str, bool]]:
    cells = [(in_ms(x), p not in found.not_meaningful) for p, x in found.percentiles.items()]
    return [*cells, (in_ms(found.max), True), (in_ms(found.mean), True)]


def _drawn(plots: list[Plot]) -> list[tuple[str, Any]]:
    from markupsafe import Markup

    return [(plot.title, Markup(plot.svg)) for plot in plots]
