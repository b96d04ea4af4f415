"""metrics.jsonl: one line for a step, written by the first worker, read by everybody else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylm.artifact import disk_errors

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends lines, each flushed, so that a killed run loses at most one half line."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        self._folder = path.parent
        temporary = path.with_suffix(".tmp")
        text = "".join(json.dumps(line) + "\n" for line in kept)
        with disk_errors(self._folder):
            temporary.write_text(text, encoding="utf-8")
            temporary.rename(path)
            self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line; it must hold `step`.

        Raises:
            HostError: the disk is full.
        """
        with disk_errors(self._folder):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Have the lines so far on the disk, as what is saved next goes on from them."""
        with disk_errors(self._folder):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; a half-written last one is left out."""
    yield from MetricsTail(path).new()


class MetricsTail:
    """Reads what was added to a metrics file since the last look, and only that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0
        self.is_anew = False
        """Whether the last look began at the file's start."""

    def new(self) -> list[dict[str, Any]]:
        """Whole lines not seen yet; all of them again after a resume has replaced the file."""
        try:
            file = self._path.open(encoding="utf-8")
        except FileNotFoundError:
            return []
        with file:
            inode = os.fstat(file.fileno()).st_ino
            self.is_anew = inode != self._inode
            if self.is_anew:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition("\n")
        if not whole:
            return []
        self._offset += len(whole.encode()) + 1
        return [json.loads(line) for line in whole.split("\n")]
