"""Progress for people, on standard error: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from raylm.cli.output import human_bytes, human_s
from raylm.progress import Report, Tick

PLAIN_EVERY_S = 5.0
_WINDOW_S = 30.0


@dataclass(slots=True)
class Pace:
    """How fast a stage goes, from its last half minute; time is a parameter."""

    begun_s: float
    seen: deque[tuple[float, float]] = field(default_factory=deque)

    def note(self, done: float, now_s: float) -> None:
        """Take a sign of life into account."""
        if self.seen and done < self.seen[-1][1]:
            self.seen.clear()
        self.seen.append((now_s, done))
        while len(self.seen) > 2 and now_s - self.seen[0][0] > _WINDOW_S:
            self.seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second; None as long as nothing can be said."""
        if len(self.seen) < 2:
            return None
        (t0, d0), (t1, d1) = self.seen[0], self.seen[-1]
        return (d1 - d0) / (t1 - t0) if t1 > t0 and d1 > d0 else None

    def left_s(self, total: float | None) -> float | None:
        """Seconds until `total`."""
        rate = self.rate
        if total is None or rate is None:
            return None
        return max(0.0, (total - self.seen[-1][1]) / rate)


def figures(tick: Tick, pace: Pace, now_s: float) -> str:
    """`12/40 steps, 1.5 steps/s, 8.0 s, 19 s left`."""
    parts = []
    if tick.done is not None and tick.unit == "B":
        total = f" of {human_bytes(tick.total)}" if tick.total is not None else ""
        parts.append(human_bytes(tick.done) + total)
    # `1/1` without a unit only says that something is done.
    elif tick.done is not None and (tick.unit or (tick.total or 0) > 1):
        total = f"/{amount(tick.total)}" if tick.total is not None else ""
        parts.append(f"{amount(tick.done)}{total} {tick.unit}".rstrip())
    # A rate of 0.09 replicas/s tells nobody anything.
    if pace.rate is not None and tick.unit and (tick.total is None or tick.total > 10):
        parts.append(f"{amount(pace.rate, tick.unit)}/s")
    parts.append(human_s(now_s - pace.begun_s))
    left = pace.left_s(tick.total) if tick.left_s is None else tick.left_s
    if left is not None and not is_end(tick):
        parts.append(f"{human_s(left)} left")
    return ", ".join(parts)


def amount(value: float, unit: str = "") -> str:
    """`1.5 MiB`, `12,000 tokens`, `4.22 steps`: three digits or whole numbers, no exponents."""
    if unit == "B":
        return human_bytes(value)
    text = f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:,.3g}"
    return f"{text} {unit}".rstrip()


def is_end(tick: Tick) -> bool:
    """Whether this is the last sign of life of its kind."""
    return tick.total is not None and tick.done is not None and tick.done >= tick.total


class Lines:
    """One line for a new stage, for an end, and every few seconds between."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._paces: dict[str, Pace] = {}
        self._last_s: dict[str, float] = {}

    def __call__(self, tick: Tick) -> None:
        """Show a sign of life, if it is time."""
        now = self._clock()
        is_new = tick.stage not in self._paces
        pace = self._paces.setdefault(tick.stage, Pace(now))
        if tick.done is not None:
            pace.note(tick.done, now)
        due = now - self._last_s.get(tick.stage, now) >= PLAIN_EVERY_S
        if is_new or due or is_end(tick) or tick.is_notice:
            self._last_s[tick.stage] = now
            self._out.write(f"{tick.stage}: {tick.text} ({figures(tick, pace, now)})\n")
            self._out.flush()


class Live:
    """One moving line with a bar; a stage that gives way to the next leaves its last line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(stderr=True, highlight=False)
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._last: Tick | None = None
        self._live = RichLive(
            console=self._console,
            refresh_per_second=5,
            transient=True,
            get_renderable=self._render,
            redirect_stdout=False,
            redirect_stderr=True,
        )

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()
        self._live.stop()

    def __call__(self, tick: Tick) -> None:
        """Show a sign of life."""
        now = self._clock()
        if self._last is not None and self._last.stage != tick.stage:
            self._leave()
        pace = self._paces.setdefault(tick.stage, Pace(now))
        if tick.done is not None:
            pace.note(tick.done, now)
        if tick.is_notice:
            self._console.print(self._line(tick), markup=False, soft_wrap=True)
        self._last = tick

    def _leave(self) -> None:
        if self._last is not None and not self._last.is_notice:
            self._console.print(self._line(self._last), markup=False, soft_wrap=True)
        self._last = None

    def _line(self, tick: Tick) -> str:
        pace = self._paces[tick.stage]
        return f"{tick.stage:<9} {tick.text}  {figures(tick, pace, self._clock())}"

    def _render(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        tick = self._last
        if tick is None:
            return Text("")
        grid = Table.grid(padding=(0, 1))
        cells: list[Any] = [Text(tick.stage, style="bold"), Text(tick.text)]
        if tick.total and tick.total > 1 and tick.done is not None:
            cells.append(ProgressBar(total=tick.total, completed=tick.done, width=24))
        else:
            cells.append(ProgressBar(pulse=True, total=None, width=24))
        cells.append(Text(figures(tick, self._paces[tick.stage], self._clock()), style="dim"))
        for _ in cells:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*cells)
        return grid


@contextmanager
def progress() -> Iterator[Report]:
    """A `Report` that fits where standard error goes."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with Live() as live:
            yield live
    else:
        yield Lines(sys.stderr)
