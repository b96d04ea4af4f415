"""What the driver asks of running workers, in a file that the first rank reads after each step."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from raylm.artifact import write_atomic

_ORDER = "order"


class Order(IntEnum):
    """What to do after this step."""

    GO_ON = 0
    SAVE_AND_STOP = 1
    """Write a checkpoint and return: the run goes on later, perhaps with other workers."""


def give_order(work: Path, order: Order) -> None:
    """Ask; GO_ON takes back what was asked."""
    if order is Order.GO_ON:
        (work / _ORDER).unlink(missing_ok=True)
    else:
        write_atomic(work / _ORDER, order.name + "\n")


def read_order(work: Path) -> Order:
    """What is asked."""
    try:
        return Order[(work / _ORDER).read_text(encoding="utf-8").strip()]
    except (FileNotFoundError, KeyError):
        return Order.GO_ON
