"""What is there of a run: its record, its metrics, what it made; finished, running or killed."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.artifact import MANIFEST, Manifest, read_manifest
from raylm.errors import ArtifactError
from raylm.processes import is_same
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.skips import SKIPPED

if TYPE_CHECKING:
    from raylm.store import Store

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    """A run as its files tell it."""

    record: dict[str, Any]
    """run.json."""
    state: str
    """done, failed, interrupted, running; killed: it says running, and its process is gone."""
    lines: list[Line] = field(default_factory=list)
    """Of metrics.jsonl, oldest first."""
    skips: list[dict[str, Any]] = field(default_factory=list)
    """Of skipped.json, without samples and documents."""
    made: dict[str, Manifest] = field(default_factory=dict)
    """Manifests of the stages' results, as far as they are still in the store."""

    @property
    def id(self) -> str:
        """The run's."""
        return str(self.record["id"])

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What became of each stage."""
        return {stage["stage"]: stage for stage in self.record.get("stages", [])}

    @property
    def steps(self) -> list[Line]:
        """The lines of steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def held_out(self) -> list[Line]:
        """The lines of looks at the held-out split, by step: one aside is written down later."""
        found = [line for line in self.lines if "held_out_loss" in line]
        return sorted(found, key=lambda line: int(line["step"]))


def read_history(store: Store, record: dict[str, Any]) -> History:
    """All that is there of a run; what is missing or half written is left out."""
    work = work_of(store.root / "runs" / record["id"], record)
    made = {}
    for stage in record.get("stages", []):
        with suppress(ArtifactError, OSError):
            if stage.get("ref") and (store.root / stage["ref"] / MANIFEST).is_file():
                made[stage["stage"]] = read_manifest(store.root / stage["ref"])
    lines = list(read_metrics(work / METRICS)) if work else []
    return History(record, state_of(record), lines, _skips(work) if work else [], made)


def work_of(path: Path, record: dict[str, Any]) -> Path | None:
    """The folder of a run's train stage: that of its record, else the one written to last."""
    for stage in record.get("stages", []):
        if stage["stage"] == "train" and stage.get("key"):
            named = path / f"train-{stage['key'][:12]}"
            if named.is_dir():
                return named
    found = sorted(path.glob(f"train-*/{METRICS}"), key=lambda file: file.stat().st_mtime)
    return found[-1].parent if found else None


def state_of(record: dict[str, Any]) -> str:
    """The state of a run, which a killed one could not write down itself.

    Of a process on another machine nothing is known but what the record says.
    """
    process = record.get("process")
    if record["state"] != "running" or not process or process["host"] != socket.gethostname():
        return str(record["state"])
    return "running" if is_same(process["pid"], process["created"]) else "killed"


def _skips(work: Path) -> list[dict[str, Any]]:
    try:
        raw = json.loads((work / SKIPPED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [{name: skip[name] for name in ("window", "step", "why")} for skip in raw]
