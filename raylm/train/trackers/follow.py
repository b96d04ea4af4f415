"""`python -m raylm.train.trackers.follow NAME WORK`: hand metrics.jsonl on to one tracker.

A process of its own, so that a tracker that hangs, fails or leaves threads behind cannot touch
the training. It ends when its standard input does: the driver is done, and has said `finished`
if all went well, or it is gone.

    <work>/trackers/<name>.json     how far it came
    <work>/trackers/<name>.log      what it printed
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raylm.train.metrics import METRICS, MetricsTail
from raylm.train.trackers.about import about
from raylm.train.trackers.mark import Mark

PLACE = "trackers"
FINISHED = b"finished\n"
LOOK_S = 1.0


class Tracker(Protocol):
    """Where figures go; it notes in its mark what it was told."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Hand on lines of metrics.jsonl."""

    def close(self, *, finished: bool) -> None:
        """End; what was handed on must be there then."""


def follow(
    work: Path, name: str, make: Callable[[Mark], Tracker], ends: Callable[[], bool | None]
) -> None:
    """Hand on every line until the end.

    Args:
        ends: waits a moment; None goes on, else whether the training finished.
    """
    file = work / PLACE / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    mark, tail = Mark.read(file), MetricsTail(work / METRICS)
    tracker = make(mark)
    mark.save(file)
    finished = None
    while finished is None:
        finished = ends()
        lines: Sequence[Mapping[str, Any]] = tail.new()
        if tail.is_anew:
            lines = mark.fresh(lines)
        if lines:
            tracker.write(lines)
            mark.time = lines[-1]["time"]
            mark.save(file)
    tracker.close(finished=finished)
    mark.save(file)


def make_tracker(name: str, work: Path, mark: Mark) -> Tracker:
    """The tracker of a name."""
    if name == "tensorboard":
        from raylm.train.trackers.tensorboard import TensorBoard

        return TensorBoard(work, mark)
    if name == "mlflow":
        from raylm.train.trackers.mlflow import MLflow

        return MLflow(work, mark, about(work))
    from raylm.train.trackers.trackio import Trackio

    return Trackio(work, mark, about(work))


def _input_ends() -> bool | None:
    """Look at standard input for a moment."""
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_S)
    return None if not ready else sys.stdin.buffer.read() == FINISHED


def main(name: str, work: Path) -> None:
    """Follow a training until standard input ends."""
    os.nice(5)
    follow(work, name, lambda mark: make_tracker(name, work, mark), _input_ends)
    # What a tracker's library does at the end of a process is its own affair, and may hang.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
