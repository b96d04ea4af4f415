"""A run's figures, added to those of earlier runs in a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tests.e2e.load import Seen
from tests.e2e.served import Phases

Starts = dict[str, Phases]


def write(file: Path, starts: Starts, seen: list[Seen]) -> None:
    """Each event and each way of starting has a list of runs."""
    found = json.loads(file.read_text()) if file.exists() else {"starts": {}, "events": {}}
    for way, phases in starts.items():
        found["starts"].setdefault(way, []).append(
            {part: round(seconds, 1) for part, seconds in asdict(phases).items()}
        )
    for one in seen:
        run = asdict(one)
        found["events"].setdefault(run.pop("event"), []).append(run)
    file.write_text(json.dumps(found, indent=1) + "\n")
