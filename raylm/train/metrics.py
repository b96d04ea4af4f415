"""metrics.jsonl: one line for a step, written by the first worker, read by everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends lines, each flushed, so that a killed run loses at most one half line."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line; it must hold `step`."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path, offset: int = 0) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; a half-written last one is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        file.seek(offset)
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
