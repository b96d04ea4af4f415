"""What a tracker is told of a run beside its figures: its id, and its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.config.flat import flat


@dataclass(frozen=True, slots=True)
class About:
    """A run's id, and its configuration by dotted keys."""

    run_id: str
    config: dict[str, Any]


def about(work: Path) -> About:
    """From the run's record; a stage that works outside a run has its folder's name alone."""
    try:
        record = json.loads((work.parent / "run.json").read_text(encoding="utf-8"))
        parts = {name: record["config"][name] for name in ("data", "model", "train")}
        return About(record["id"], flat({"seed": record["config"]["seed"], **parts}))
    except (OSError, ValueError, KeyError):
        return About(work.name, {})
