"""The answers of a batch on the disk: appended in groups, each line once, whatever is killed when.

A line counts when its newline is on the disk. What a kill has cut short is cut off when the batch
goes on, and answered again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raylm.serve.batches.files import Files
from raylm.serve.batches.status import State, Tally


@dataclass(slots=True)
class Results:
    """Both files of a batch, and what is in them."""

    output: Path
    errors: Path
    done: set[str]
    """The custom_ids of every line."""
    tally: Tally = field(default_factory=Tally)
    pending: dict[Path, list[str]] = field(default_factory=dict)
    """Lines of each file that are not on the disk yet."""

    @classmethod
    def open(cls, files: Files, state: State) -> Results:
        """Go on with what is there; takes as long as reading it.

        Raises:
            HostError: the disk is full or cannot be written.
        """
        found = cls(files.content(state.output_id), files.content(state.errors_id), set())
        for file_id in (state.output_id, state.errors_id):
            if not files.content(file_id).exists():
                os.close(files.create(file_id))
            for line in _whole_lines(files.content(file_id)):
                found._count(line, is_error=file_id == state.errors_id)
        return found

    def add(self, line: dict[str, Any], *, is_error: bool) -> None:
        """Take a line, to be written with the next group."""
        if line["custom_id"] in self.done:
            return
        self._count(line, is_error=is_error)
        path = self.errors if is_error else self.output
        self.pending.setdefault(path, []).append(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write and sync what is pending; lines may be added meanwhile, from another thread.

        Raises:
            OSError: the disk is full; the lines stay pending.
        """
        for path, lines in tuple(self.pending.items()):
            if num_lines := len(lines):
                _append(path, "".join(lines[:num_lines]).encode())
                del lines[:num_lines]

    def _count(self, line: dict[str, Any], *, is_error: bool) -> None:
        self.done.add(line["custom_id"])
        tally = self.tally
        if is_error:
            self.tally = replace(tally, failed=tally.failed + 1)
            return
        usage = line["response"]["body"].get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.tally = Tally(
            tally.completed + 1,
            tally.failed,
            tally.input_tokens + usage.get("prompt_tokens", 0),
            tally.cached_tokens + cached,
            tally.output_tokens + usage.get("completion_tokens", 0),
        )


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line; what comes after the last newline is cut off."""
    size = 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            size += len(raw)
            yield json.loads(raw)
    os.truncate(path, size)


def _append(path: Path, data: bytes) -> None:
    """Append all of it or nothing, synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    size = os.fstat(descriptor).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    finally:
        os.close(descriptor)
