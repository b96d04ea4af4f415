"""Seen: what one fault did to a training; and the table of many."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

EVERY = 10
"""Steps between checkpoints."""
MARKS = "<!-- faults: made by `python -m tests.campaign table` -->", "<!-- /faults -->"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one fault did."""

    fault: str
    precision: str
    zero: int
    step: int
    """The furthest step before it."""
    steps_lost: int
    """Done again."""
    recover_s: float
    """Until the first step after it."""
    max_loss_difference: float
    """Of the losses of all steps, relative to those of an undisturbed run: 0 is the same, bit for
    bit."""


def largest_difference(found: dict[int, float], expected: dict[int, float]) -> float:
    """Of the losses of some steps, relative to what is expected of them."""
    return max(abs(found[step] / expected[step] - 1) for step in found)


def read(files: Iterable[Path]) -> list[Seen]:
    """What campaigns saw."""
    return [Seen(**entry) for file in files for entry in json.loads(file.read_text())]


def write(file: Path, seen: Sequence[Seen]) -> None:
    """One line for each."""
    lines = ",\n".join(json.dumps(asdict(each)) for each in seen)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def table(seen: Sequence[Seen], faults: Iterable[str]) -> str:
    """Markdown: one line for each of `faults` that was seen, and which cases they were seen in."""
    lines = [
        "| fault | repetitions | steps lost, median (most) | seconds to recover, median (most) "
        "| largest loss difference |",
        "|---|---|---|---|---|",
    ]
    for fault in faults:
        of = [s for s in seen if s.fault == fault]
        if of:
            lost, took = [s.steps_lost for s in of], [s.recover_s for s in of]
            lines.append(
                f"| {fault} | {len(of)} | {statistics.median(lost):g} ({max(lost)}) "
                f"| {_seconds(statistics.median(took))} ({_seconds(max(took))}) "
                f"| {max(s.max_loss_difference for s in of):.2g} |"
            )
    cases = sorted({(s.precision, s.zero) for s in seen})
    named = ", ".join(f"{precision} with ZeRO {zero}" for precision, zero in cases)
    lines.append("")
    lines.append(
        f"Two workers, a checkpoint every {EVERY} steps; {named}. Differences are relative; 0 is "
        "the same loss bit for bit."
    )
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    """Rounded, but for what is over at once."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
