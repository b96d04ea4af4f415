"""`raylm runs diff`: what differs between two runs, and what came of it; pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raylm.config.flat import flat
from raylm.observe.history import History, Line

_PLACES = 8
"""Rows of the table of losses."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that both have, or one of them (None)."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Losses:
    """Training losses at the same place."""

    at: int
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Two runs beside each other."""

    runs: tuple[str, str]
    states: tuple[str, str]
    config: list[Row]
    """Keys with different values."""
    data: list[Row]
    """Digest and counts of the dataset, where they differ."""
    has_data: bool
    """Whether either has a dataset: where none has, none differs."""
    code: list[Row]
    """Versions and revision, where they differ."""
    results: list[Row]
    """Figures that either has, equal or not."""
    losses_by: str
    """`step`, or `tokens` where steps are not of the same size."""
    losses: list[Losses]
    first_other_step: int | None
    """The first step with another loss, to the last digit; None if all that both have are equal,
    or if they cannot be compared by step."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def difference(a: History, b: History) -> Difference:
    """Compare two runs, whatever their states."""
    by = "step" if _step_tokens(a) == _step_tokens(b) else "tokens"
    return Difference(
        runs=(a.id, b.id),
        states=(a.state, b.state),
        config=_differing(_of(_config, a, b)),
        data=_differing(_of(_data, a, b)),
        has_data="data" in a.stages or "data" in b.stages,
        code=_differing(_of(_code, a, b)),
        results=_of(_results, a, b),
        losses_by=by,
        losses=equal_places(a.steps, b.steps, by),
        first_other_step=first_other_step(a.steps, b.steps) if by == "step" else None,
    )


def equal_places(a: list[Line], b: list[Line], by: str) -> list[Losses]:
    """Losses at places that both reached, evenly spread, the last one among them.

    By tokens, each run shows its last step up to the place.
    """
    if not a or not b:
        return []
    if by == "step":
        ours, theirs = ({line["step"]: line["loss"] for line in lines} for lines in (a, b))
        places = _spread([place for place in ours if place in theirs])
        return [Losses(place, ours[place], theirs[place]) for place in places]
    first = max(a[0]["tokens"], b[0]["tokens"])
    coarser = max(a, b, key=lambda lines: lines[0]["tokens"])
    last = min(a[-1]["tokens"], b[-1]["tokens"])
    places = _spread([line["tokens"] for line in coarser if first <= line["tokens"] <= last])
    return [Losses(place, _up_to(a, place), _up_to(b, place)) for place in places]


def first_other_step(a: list[Line], b: list[Line]) -> int | None:
    """The first step that both have with losses that are not the same number."""
    theirs = {line["step"]: line["loss"] for line in b}
    return next(
        (
            line["step"]
            for line in a
            if line["step"] in theirs and theirs[line["step"]] != line["loss"]
        ),
        None,
    )


def _spread(places: list[int]) -> list[int]:
    count = min(_PLACES, len(places))
    return [places[(i + 1) * len(places) // count - 1] for i in range(count)]


def _up_to(lines: list[Line], tokens: int) -> float:
    return float(lines[bisect_right([line["tokens"] for line in lines], tokens) - 1]["loss"])


def _of(read: Callable[[History], Mapping[str, Any]], a: History, b: History) -> list[Row]:
    ours, theirs = read(a), read(b)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [Row(name, ours.get(name), theirs.get(name)) for name in names]


def _differing(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.a != row.b]


def _step_tokens(run: History) -> float | None:
    return run.steps[0]["tokens"] / run.steps[0]["step"] if run.steps else None


def _config(run: History) -> Mapping[str, Any]:
    return flat(run.record.get("config", {}))


def _data(run: History) -> Mapping[str, Any]:
    stage = run.stages.get("data", {})
    manifest = run.made.get("data")
    # Of an artifact that was removed, its name still has the digest's start.
    ref = stage.get("ref")
    digest = manifest.digest if manifest else ref.rpartition("-")[2] if ref else None
    return {"digest": digest, **stage.get("metrics", {})}


def _code(run: History) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        **run.record.get("versions", {}),
        "git_revision": run.record.get("git_revision"),
    }
    if "versions" not in run.record:
        # Runs of before: what the last stage was made with.
        for manifest in run.made.values():
            found = {**manifest.versions, "git_revision": manifest.git_revision}
    return {name: value for name, value in found.items() if value is not None}


def _results(run: History) -> Mapping[str, Any]:
    stages = run.stages
    last = run.steps[-1] if run.steps else {}
    peaks = [line["peak_memory_bytes"] for line in run.lines if "peak_memory_bytes" in line]
    key = "max_memory_peak_bytes"
    memory = [line[key] for line in run.steps if key in line]
    found: dict[str, Any] = {
        "steps": last.get("step"),
        "tokens": last.get("tokens"),
        "train_loss": last.get("loss"),
        "held_out_loss": run.held_out[-1]["held_out_loss"] if run.held_out else None,
        "tokens_per_s": last.get("tokens_per_s"),
        "mfu": last.get("mfu"),
        "train_s": last.get("elapsed_s"),
        "memory_peak_bytes": max([*peaks, *memory], default=None),
        "skipped_windows": len(run.skips) if run.steps else None,
        "restarts": restarts(run.lines) if run.steps else None,
    }
    for name in ("evaluate", "compress"):
        metrics = stages.get(name, {}).get("metrics", {})
        found |= {
            f"{name}.{key}": value
            for key, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    for name, manifest in run.made.items():
        found[f"{name}.artifact_bytes"] = sum(file.size_bytes for file in manifest.files)
    if "compress" in stages:
        found["gate"] = "held"
    elif run.record.get("error_code") == "gate-not-met":
        found["gate"] = "not met"
    return {name: value for name, value in found.items() if value is not None}


def restarts(lines: list[Line]) -> int:
    """How often a run began anew after it had begun."""
    return max(0, sum(line.get("event") in ("start", "resume") for line in lines) - 1)
