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
    is_notice: bool = False
    """Something to know rather than the state of things: it is shown whenever it comes, and is
    not written over."""
    left_s: float | None = None
    """Seconds until the end, where the one who works knows better than the one who looks on."""

    def to_json(self) -> str:
        """One line of JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        said = {name: x for name, x in fields.items() if x is not None and x is not False}
        return json.dumps(said)


Report = Callable[[Tick], None]


def silent(tick: Tick) -> None:
    """Tell nobody."""
