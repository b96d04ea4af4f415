"""Case: what is trained, and how often its faults hit."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.campaign.seen import EVERY, Seen

STEPS_PER_FAULT = 60
GAP = (12, 24)
"""Steps between what was gone over again after a fault and the next one: at least, at most."""
BEYOND = 3
"""Steps past the furthest one before a fault, until it counts as got over."""
LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Case:
    """One of a kind of campaigns: `fp32-2`, `nodes-bf16-3`."""

    kind: str
    """Empty for faults of processes and disks on one machine."""
    precision: str
    zero: int

    @classmethod
    def of(cls, name: str) -> Case:
        """From its name."""
        *kind, precision, zero = name.split("-")
        return cls("".join(kind), precision, int(zero))

    def __str__(self) -> str:
        return f"{self.kind}-{self.precision}-{self.zero}".removeprefix("-")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    rounds: int
    seed: int
    deadline_s: float
    """By the monotonic clock: no fault is begun after it."""
    only: str = ""
    """A pattern in the names of the faults that are meant."""

    def draw(self, case: Case) -> random.Random:
        """What chance decides in a case."""
        return random.Random(f"{self.seed}-{case}")

    def chosen(self, faults: Iterable[str]) -> list[str]:
        """Those that are meant, each as often as there are rounds."""
        return [fault for fault in faults if re.search(self.only, fault)] * self.rounds

    @property
    def is_over(self) -> bool:
        """Whether no fault is begun any more."""
        return time.monotonic() > self.deadline_s


def next_step(last: int, draw: random.Random) -> int:
    """Where the next fault hits, if the run is at step `last`."""
    return max(last, 2 * EVERY) + draw.randint(*GAP)


Note = Callable[[Seen], None]
"""Takes what was seen."""
