"""How far a tracker has been told, kept beside the metrics so that a restart goes on there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic


@dataclass(slots=True)
class Mark:
    """The place of one tracker."""

    time: float = 0.0
    """Unix time of the last line that was handed on."""
    last: dict[str, int] = field(default_factory=dict)
    """The last step of each figure."""
    run: str = ""
    """The tracker's own name for the run, where it gives one."""

    @property
    def step(self) -> int:
        """The last step of any figure; -1 before the first."""
        return max(self.last.values(), default=-1)

    def is_known(self, name: str, step: int) -> bool:
        """Whether a figure of this step was handed on: a resumed run does steps again."""
        return step <= self.last.get(name, -1)

    def note(self, names: Iterable[str], step: int) -> None:
        """These figures of a step were handed on."""
        self.last |= dict.fromkeys(names, step)

    def forget_from(self, step: int) -> None:
        """What was handed on of `step` and later does not count."""
        self.last = {name: min(known, step - 1) for name, known in self.last.items()}

    def fresh(self, lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of a file that was written anew, the lines that came after the mark.

        A resume keeps old lines as they are, with their times.
        """
        return [line for line in lines if line.get("time", 0.0) > self.time]

    def save(self, file: Path) -> None:
        """Write it."""
        write_atomic(file, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, file: Path) -> Mark:
        """A mark that was saved; a new one where there is none that can be read."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()
