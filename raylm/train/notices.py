"""Notices: what a worker has to tell the person who waits, in a file that the driver reads.

<work>/notices.jsonl     {"time", "text"}, a line each
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from raylm.train.metrics import MetricsTail

_NOTICES = "notices.jsonl"


def give_notice(work: Path, text: str) -> None:
    """Tell; what cannot be written is lost, and no reason to end the training."""
    with suppress(OSError), (work / _NOTICES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "text": text}) + "\n")


class NoticesTail:
    """What is told from now on."""

    def __init__(self, work: Path) -> None:
        self._tail = MetricsTail(work / _NOTICES)
        self._tail.new()

    def new(self) -> list[str]:
        """What was told since the last look."""
        return [str(line["text"]) for line in self._tail.new()]
