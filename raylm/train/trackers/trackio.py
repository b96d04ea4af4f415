"""trackio, where its environment says, else a SQLite store in `<work>/trackio`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylm.train.trackers.about import About
from raylm.train.trackers.mark import Mark
from raylm.train.trackers.scalars import scalars

FOLDER = "trackio"
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio:
    """One trackio run for a raylm run. A point cannot be taken back: a step that is done again
    after a resume keeps its first one.
    """

    def __init__(self, work: Path, mark: Mark, about: About) -> None:
        # Both are read when trackio is imported.
        os.environ.setdefault("TRACKIO_DIR", str(work / FOLDER))
        if not any(os.environ.get(name) for name in _ELSEWHERE):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import trackio

        self._mark = mark
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "raylm"),
            name=about.run_id,
            config=dict(about.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        mark.run = about.run_id

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Hand on lines of metrics.jsonl; trackio sends them from a thread of its own."""
        for line in lines:
            step = int(line["step"])
            new = {k: v for k, v in scalars(line).items() if not self._mark.is_known(k, step)}
            if new:
                self._run.log(new, step=step)
            self._mark.note(new, step)

    def close(self, *, finished: bool) -> None:
        """Wait until all is written."""
        self._run.finish()
