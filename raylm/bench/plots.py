"""The plots of a run: latency over load, and of each level its latencies and their course; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from raylm.bench.figures import LATENCIES, Figures, values_of
from raylm.bench.record import Phase, Record
from raylm.bench.result import LevelResult
from raylm.observe.chart import Mark, Plot, Series, line_chart

_SIZE: dict[str, Any] = {"width": 440, "height": 230}
_SHOWN: tuple[tuple[str, Literal["first", "second"]], ...] = (("p50", "first"), ("p99", "second"))
_MOST_MARKS = 50
_MS = 1000


def over_load(levels: Sequence[LevelResult], found: Sequence[Figures]) -> list[Plot]:
    """Latency over throughput, a point for each level; nothing of one level alone."""
    if len(levels) < 2:
        return []
    # In the order of load: where a server is overloaded, the curve may turn back.
    by_load = sorted(zip(levels, found, strict=True), key=lambda pair: pair[0].value)
    plots = []
    for name, title in (("ttft", "Time to first token"), ("tpot", "Time per output token")):
        series = [
            Series(
                p,
                [
                    (figures.output_tokens_per_s, _MS * latency.percentiles[p])
                    for _, figures in by_load
                    if (latency := figures.latency[name]) is not None
                ],
                dots=True,
                style=style,
            )
            for p, style in _SHOWN
        ]
        drawn = line_chart(series, x_label="output tokens/s", y_label="ms", from_zero=True, **_SIZE)
        plots.append(Plot(f"{title} over throughput", drawn))
    load = [
        (level.value, 100 * figures.goodput.share)
        for level, figures in by_load
        if figures.goodput is not None
    ]
    plots.append(
        Plot(
            "Goodput over load",
            line_chart([Series("goodput", load, dots=True)], x_label="load",
                       y_label="requests within the SLO, %", from_zero=True, **_SIZE),
        )
    )  # fmt: skip
    return [plot for plot in plots if plot.svg]


def of_level(level: LevelResult) -> list[Plot]:
    """The distributions of a level's latencies, and the time to first token in its course."""
    ok = [record for record in level.records if record.phase == "measured" and record.is_ok]
    cdf = line_chart(
        [
            Series("time to first token", cumulative(ok, "ttft")),
            Series("to the end", cumulative(ok, "e2e"), style="second"),
        ],
        x_label="ms from when the request was due",
        y_label="requests, %",
        from_zero=True,
        **_SIZE,
    )
    course = line_chart(
        [
            Series("warm-up", _course(level.records, "warm-up"), style="faint"),
            Series("measured", _course(level.records, "measured")),
            Series("cool-down", _course(level.records, "cool-down"), style="faint"),
        ],
        x_label="s since the level began, when the request was due",
        y_label="time to first token, ms",
        from_zero=True,
        marks=_failures(level.records),
        **_SIZE,
    )
    plots = [Plot("Latencies, cumulative", cdf), Plot("Time to first token, in its course", course)]
    return [plot for plot in plots if plot.svg]


def cumulative(records: Sequence[Record], latency: str) -> list[tuple[float, float]]:
    """(ms, % of the requests that took no longer), a point for each request."""
    values = np.sort(values_of(records, LATENCIES[latency]))
    return [(_MS * float(x), 100 * (i + 1) / len(values)) for i, x in enumerate(values)]


def _course(records: Sequence[Record], phase: Phase) -> list[tuple[float, float]]:
    return [
        (r.scheduled_at_s, _MS * r.ttft_s)
        for r in records
        if r.ttft_s is not None and r.phase == phase
    ]


def _failures(records: Sequence[Record]) -> list[Mark]:
    failed = [r for r in records if r.phase == "measured" and r.failure is not None]
    name = "failed" if len(failed) <= _MOST_MARKS else f"failed, the first {_MOST_MARKS}"
    return [
        Mark(name, r.scheduled_at_s, f"{r.failure}, due at {r.scheduled_at_s:.3f} s", "skip")
        for r in failed[:_MOST_MARKS]
    ]
