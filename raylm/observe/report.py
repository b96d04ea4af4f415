"""The page of a run: its curves, figures with their intervals, what compression cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.observe.difference import restarts
from raylm.observe.history import History
from raylm.observe.page import render
from raylm.observe.plots import plots

REPORT = "report.html"


def write_report(folder: Path, run: History) -> Path:
    """Write report.html into a run's folder: one file that loads nothing."""
    from markupsafe import Markup

    drawn = [(plot.title, Markup(plot.svg)) for plot in plots(run)]
    values = {
        "run_id": run.id,
        "state": run.state,
        "error": run.record.get("error"),
        "stages": list(run.stages.values()),
        "data": _metrics_of(run, "data"),
        "train": _training(run),
        "evaluation": _metrics_of(run, "evaluate"),
        "compression": _metrics_of(run, "compress"),
        "curve": drawn[0][1] if drawn else None,
        "plots": drawn[1:],
        "skips": run.skips,
    }
    page = render("raylm.observe", "report.html.jinja", values)
    path = folder / REPORT
    write_atomic(path, page)
    return path


def _training(run: History) -> dict[str, Any] | None:
    """What the training came to, from its last step: that of a killed run is there as well."""
    if not run.steps:
        return None
    last = run.steps[-1]
    found = {
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds of steps": last["elapsed_s"],
        "tokens/s": last["tokens_per_s"],
        "restarts": restarts(run.lines),
        "skipped windows": len(run.skips),
    }
    result = next((line["result"] for line in reversed(run.lines) if "result" in line), None)
    if result is not None:
        found["the model is of step"] = f"{result['step']}: {result['why']}"
    if "mfu" in last:
        found["MFU, last steps"] = "unknown" if last["mfu"] is None else f"{last['mfu']:.1%}"
        found["memory of the fullest worker, peak, MiB"] = last["max_memory_peak_bytes"] // 2**20
    return found


def _metrics_of(run: History, stage: str) -> dict[str, Any] | None:
    found = run.stages.get(stage)
    return found["metrics"] if found and found.get("metrics") else None
