"""Progress: what a long operation tells the person who waits, wherever it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tick:
    """One sign of life. `done` of `total` in `unit`; no total where the end is not known."""

    stage: str
    text: str
    done: float | None = None
    total: float | None = None
    unit: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


Report = Callable[[Tick], None]


def silent(tick: Tick) -> None:
    """Tell nobody."""
