"""The plots of a training: which lines of metrics.jsonl are drawn, and what is marked; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from raylm.observe.chart import Mark, Plot, Series, line_chart
from raylm.observe.history import History, Line

_SMOOTH = 20
_SMALL = {"width": 360, "height": 190, "explain_marks": False}
_X = "optimizer step"


def plots(run: History) -> list[Plot]:
    """Loss first and large, the others small; those of which nothing is known are left out."""
    marks = marks_of(run)
    trained = points(run.steps, "loss")
    small: dict[str, Any] = {"x_label": _X, "marks": marks, **_SMALL}
    recent = points(run.steps, "recent_tokens_per_s")
    memory, unit = _memory(run.steps)
    found = [
        Plot(
            "Loss",
            line_chart(
                [
                    Series("training, each step", trained, style="faint"),
                    Series(f"training, mean of {_SMOOTH} steps", smoothed(trained)),
                    Series("held out", points(run.held_out, "held_out_loss"), dots=True,
                           style="second"),
                ],
                x_label=_X,
                y_label="nats per target token",
                marks=marks,
            ),
        ),
        Plot("Learning rate", line_chart([Series("rate", points(run.steps, "lr"))],
             y_label="rate", from_zero=True, **small)),
        Plot("Gradient norm", line_chart([Series("norm", points(run.steps, "grad_norm"))],
             y_label="before clipping", from_zero=True, **small)),
        Plot(
            "Speed",
            line_chart(
                [
                    Series("last steps", recent or points(run.steps, "tokens_per_s")),
                    Series("overall", points(run.steps, "tokens_per_s") if recent else [],
                           style="second"),
                ],
                y_label="tokens/s", from_zero=True, **small,
            ),
        ),
        Plot(
            "Memory of the fullest worker",
            line_chart(
                [Series("now", memory["max_memory_bytes"]),
                 Series("peak", memory["max_memory_peak_bytes"], style="second")],
                y_label=unit, from_zero=True, **small,
            ),
        ),
        Plot(
            "Share of the peak FLOP/s",
            line_chart([Series("MFU", [(x, 100 * y) for x, y in points(run.steps, "mfu")])],
                       y_label="MFU, %", from_zero=True, **small),
        ),
        Plot(
            "Wait for data",
            line_chart(
                [Series("wait", [(x, 1000 * y) for x, y in points(run.steps, "data_wait_s")])],
                y_label="ms a step", from_zero=True, **small,
            ),
        ),
    ]  # fmt: skip
    return [plot for plot in found if plot.svg]


def points(lines: Sequence[Line], key: str) -> list[tuple[float, float]]:
    """Step and figure of every line that has it."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point's mean with those up to `_SMOOTH` before it."""
    return [
        (x, sum(y for _, y in points[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH))
        for i, (x, _) in enumerate(points)
    ]


def marks_of(run: History) -> list[Mark]:
    """Restarts after the first start, and windows of samples that were skipped."""
    begun = [line for line in run.lines if line.get("event") in ("start", "resume")]
    times = Counter(int(line["step"]) for line in begun[1:])
    workers = {int(line["step"]): line.get("workers") for line in begun}
    restarts = [
        Mark(
            "restart",
            step,
            f"restarted after step {step}"
            + (f", {count} times" if count > 1 else "")
            + (f", with {workers[step]} workers" if workers[step] else ""),
            "restart",
        )
        for step, count in times.items()
    ]
    skips = [
        Mark("skipped window", skip["step"] + 1, f"skipped at step {skip['step'] + 1}: "
             f"{skip['why']}", "skip")
        for skip in run.skips
    ]  # fmt: skip
    return restarts + skips


def _memory(lines: Sequence[Line]) -> tuple[dict[str, list[tuple[float, float]]], str]:
    keys = ("max_memory_bytes", "max_memory_peak_bytes")
    found = {key: points(lines, key) for key in keys}
    most = max((y for series in found.values() for _, y in series), default=0.0)
    size, unit = (2**30, "GiB") if most >= 2**31 else (2**20, "MiB")
    return {key: [(x, y / size) for x, y in series] for key, series in found.items()}, unit
