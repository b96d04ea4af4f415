"""Run: what was measured, with everything that decided it; saved as JSON and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.bench.ceiling import Ceiling
from raylm.bench.figures import Figures, figures, tokens_at, window_of
from raylm.bench.record import Record
from raylm.bench.settings import Settings
from raylm.bench.slo import Slo
from raylm.errors import ConfigError

SCHEMA_VERSION = 1
_LATE_S = 0.010
_BUSY_SHARE = 0.7
_CEILING_SHARE = 0.5
_PER_CLIENT = 10
"""Requests of each: of fewer, those that end at the window's edges are a tenth or more."""


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One level of load, and every request of it."""

    name: str
    value: float
    cut: str | None
    """Why it ended before its time."""
    num_waited: int
    busy_share: float
    records: tuple[Record, ...]

    def figures(self, slo: Slo | None) -> Figures:
        """What it came to."""
        return figures(self.records, slo)


@dataclass(frozen=True, slots=True)
class Run:
    """All levels of load on one server."""

    started: str
    """UTC, ISO 8601."""
    settings: Settings
    slo: Slo | None
    stopped: str | None
    """What ended it before its time: a signal or a bound."""
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    ceiling: Ceiling | None
    levels: tuple[LevelResult, ...]

    @property
    def is_partial(self) -> bool:
        """Whether something that was to be measured was not."""
        return self.stopped is not None or any(level.cut for level in self.levels)

    def summary(self) -> dict[str, Any]:
        """Everything but the records, as a JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "started": self.started,
            "partial": self.is_partial,
            "stopped": self.stopped,
            "settings": asdict(self.settings),
            "slo": asdict(self.slo) if self.slo else None,
            "machine": self.machine,
            "versions": self.versions,
            "ceiling": asdict(self.ceiling) if self.ceiling else None,
            "warnings": warnings(self),
            "levels": [
                {
                    "name": level.name,
                    "value": level.value,
                    "cut": level.cut,
                    "num_waited": level.num_waited,
                    "busy_share": level.busy_share,
                    "figures": level.figures(self.slo).to_json(),
                }
                for level in self.levels
            ],
        }


def warnings(run: Run) -> list[str]:
    """What makes the figures say less than they seem to."""
    found = [f"{level.name}: {line}" for level in run.levels for line in _of_level(run, level)]
    if run.is_partial:
        why = run.stopped or next(level.cut for level in run.levels if level.cut)
        found.insert(
            0,
            f"partial: ended by {why}; answers that were on their way, the slow ones first of all, "
            "are in no latency",
        )
    return found


def _of_level(run: Run, level: LevelResult) -> Iterator[str]:
    found = level.figures(run.slo)
    late = found.latency["lateness"]
    if late is not None and late.percentiles["p99"] > _LATE_S:
        yield (
            f"the client was late: {1000 * late.percentiles['p99']:.0f} ms at p99; latencies "
            "hold it, and part of them is the client's"
        )
    if level.busy_share > _BUSY_SHARE:
        yield f"the client's thread was busy for {level.busy_share:.0%} of the time"
    if run.ceiling is not None and found.window_s:
        measured = [record for record in level.records if record.phase == "measured"]
        rate = len(tokens_at(level.records, window_of(measured))[0]) / found.window_s
        if rate > _CEILING_SHARE * run.ceiling.chunks_per_s:
            yield (
                f"{rate:,.0f} pieces/s are near what this client can take, "
                f"{run.ceiling.chunks_per_s:,.0f}: the figures are the client's too"
            )
    is_closed = run.settings.loop == "concurrency" and level.value > 1
    if is_closed and found.num_requests < _PER_CLIENT * level.value:
        yield (
            f"{found.num_requests} requests of {level.value:g} clients: the edges of the window "
            "weigh in the rates"
        )
    if level.num_waited:
        yield f"{level.num_waited} requests waited for --max-in-flight; latencies hold that"
    if found.num_without_usage:
        yield (
            f"{found.num_without_usage} answers came without usage: their pieces were counted as "
            "tokens"
        )
    if found.num_without_text:
        yield f"{found.num_without_text} answers had no text, and so no time to the first token"


def save_run(run: Run, path: Path) -> None:
    """Write the summary and every record."""
    document = run.summary()
    for level, shown in zip(run.levels, document["levels"], strict=True):
        shown["records"] = [record.to_json() for record in level.records]
    write_atomic(path, json.dumps(document) + "\n")


def load_run(path: Path) -> Run:
    """A run that was saved.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {found['schema_version']!r}")
        return Run(
            started=found["started"],
            settings=_settings(found["settings"]),
            slo=Slo(**found["slo"]) if found["slo"] else None,
            stopped=found["stopped"],
            machine=found["machine"],
            versions=found["versions"],
            ceiling=Ceiling(**found["ceiling"]) if found["ceiling"] else None,
            levels=tuple(
                LevelResult(
                    level["name"],
                    level["value"],
                    level["cut"],
                    level["num_waited"],
                    level["busy_share"],
                    tuple(Record.from_json(record) for record in level["records"]),
                )
                for level in found["levels"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no run that `raylm bench --save` wrote: {error}", code="bench-run"
        ) from error


def _settings(fields: dict[str, Any]) -> Settings:
    lists = {name: tuple(x) for name, x in fields.items() if isinstance(x, list)}
    return Settings(**fields | lists)
