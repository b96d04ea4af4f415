"""TensorBoard event files in `<work>/tensorboard`."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylm.train.trackers.events import EventFile
from raylm.train.trackers.mark import Mark
from raylm.train.trackers.scalars import scalars

FOLDER = "tensorboard"


class TensorBoard:
    """One more event file at each start; steps that are done again hide the old ones."""

    def __init__(self, work: Path, mark: Mark) -> None:
        self._folder, self._mark = work / FOLDER, mark
        self._folder.mkdir(parents=True, exist_ok=True)
        # What was written and not marked before a kill is hidden too, and written again.
        self._file = self._begin(mark.step + 1)

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines of metrics.jsonl."""
        for line in lines:
            values, step = scalars(line), int(line["step"])
            if any(self._mark.is_known(name, step) for name in values):
                self._mark.forget_from(step)
                self._file.close()
                self._file = self._begin(step)
            if values:
                self._file.add(values, step=step, wall_time=line["time"])
            self._mark.note(values, step)
        self._file.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._file.close()

    def _begin(self, step: int) -> EventFile:
        """A file that takes the place of all that was written of `step` and later."""
        now = time.time()
        # TensorBoard reads files by name, which have whole seconds: a count keeps the order.
        count = len(list(self._folder.iterdir()))
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{count:06d}"
        return EventFile(self._folder / name, wall_time=now, purge_step=step)
