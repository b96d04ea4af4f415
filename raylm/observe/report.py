"""The page of a run: loss curve, figures with their intervals, what compression cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.observe.chart import Series, line_chart

REPORT = "report.html"
_SMOOTH = 20


def write_report(
    folder: Path,
    *,
    run_id: str,
    stages: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
) -> Path:
    """Write report.html into a run's folder.

    Args:
        stages: as in run.json: stage, state, ref, seconds, metrics.
        metrics: lines of metrics.jsonl.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = (resources.files("raylm.observe") / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = number
    by_name = {stage["stage"]: stage for stage in stages}
    page = environment.from_string(text).render(
        run_id=run_id,
        stages=stages,
        data=_metrics_of(by_name, "data"),
        train=_metrics_of(by_name, "train"),
        evaluation=_metrics_of(by_name, "evaluate"),
        compression=_metrics_of(by_name, "compress"),
        curve=Markup(_loss_curve(metrics)),
    )
    path = folder / REPORT
    write_atomic(path, page)
    return path


def number(value: object) -> str:
    """A figure for people: four significant digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point's mean with those up to `_SMOOTH` before it."""
    return [
        (x, sum(y for _, y in points[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH))
        for i, (x, _) in enumerate(points)
    ]


def _metrics_of(by_name: Mapping[str, Mapping[str, Any]], stage: str) -> Mapping[str, Any] | None:
    found = by_name.get(stage)
    return found["metrics"] if found and found["metrics"] else None


def _loss_curve(metrics: Sequence[Mapping[str, Any]]) -> str:
    trained = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    held_out = [
        (line["step"], line["held_out_loss"]) for line in metrics if "held_out_loss" in line
    ]
    return line_chart(
        [
            Series("training, each step", trained),
            Series(f"training, mean of {_SMOOTH} steps", smoothed(trained)),
            Series("held out", held_out, dots=True),
        ],
        x_label="optimizer step",
        y_label="loss, nats per token",
    )
