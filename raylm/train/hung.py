"""Hung ranks: who is frozen, and who keeps the others from the next step; pure.

A process that is stopped falls silent. One that lives and gets nowhere (a read that never ends, a
collective that another rank does not enter) goes on beating, but moves no further: all ranks then
stand still, since each step needs all of them, and the one with the fewest moves is behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from raylm.train.signs import Doing, Sign

START_SILENT_S = 300.0
"""A rank that starts loads libraries, which can hold the interpreter for many seconds."""
STEP_PATIENCE = 10.0
"""A step may take so many times the median of those before it."""
ALLOWED_S: Mapping[Doing, float] = {
    # It hashes a checkpoint, cuts it anew, asks the model at the start: as long as it takes.
    Doing.START: math.inf,
    Doing.FIRST_STEP: 1800.0,
    Doing.VALIDATE: 1800.0,
    Doing.SAVE: 3600.0,
    Doing.WRITE_MODEL: 3600.0,
}
"""What may take longer than a step does, and how long a rank may be at it."""
_MOST_LOOK_S = 5.0


class WatchedTime:
    """A clock that runs while somebody looks: a driver that is stopped (Ctrl-Z, a laptop that
    sleeps) has not seen anybody be silent meanwhile.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._watched_s = 0.0

    def look(self, now_s: float) -> float:
        """Seconds watched so far; between two looks there are 5 at most."""
        if self._last_s is not None:
            self._watched_s += min(now_s - self._last_s, _MOST_LOOK_S)
        self._last_s = now_s
        return self._watched_s


class Unchanged:
    """Since when something of each rank is what it is, by the clock of the one who looks."""

    def __init__(self, of: Callable[[Sign], object]) -> None:
        self._of = of
        self._seen: dict[int, tuple[object, float]] = {}

    def look(self, signs: list[Sign], now_s: float) -> Mapping[int, float]:
        """Seconds since it was seen to change, by rank."""
        for sign in signs:
            seen = self._seen.get(sign.rank)
            if seen is None or seen[0] != (sign.pid, self._of(sign)):
                self._seen[sign.rank] = ((sign.pid, self._of(sign)), now_s)
        return {sign.rank: now_s - self._seen[sign.rank][1] for sign in signs}


def silent(signs: list[Sign], silent_s: Mapping[int, float], limit_s: float) -> list[Sign]:
    """Ranks that gave no sign of life for too long, the longest first.

    If all are silent, it may be the machine, or the disk between, rather than a rank: then it
    takes twice as long.
    """

    def late(times: float) -> list[Sign]:
        return [
            sign
            for sign in signs
            if silent_s[sign.rank]
            > times * (limit_s if sign.step >= 0 else max(limit_s, START_SILENT_S))
        ]

    found = late(1)
    if len(found) == len(signs) > 1:
        found = found if len(late(2)) == len(signs) else []
    return sorted(found, key=lambda sign: -silent_s[sign.rank])


def stalled(
    signs: list[Sign], still_s: Mapping[int, float], limit_s: float, num_ranks: int
) -> list[Sign]:
    """Ranks that are behind, where none has moved for longer than what it does may take.

    Nobody is where a rank's sign is not there: it has not begun, or is through.
    """
    if len(signs) < num_ranks or not signs:
        return []
    if any(still_s[sign.rank] <= allowed_s(sign, limit_s) for sign in signs):
        return []
    least = min(sign.moves for sign in signs)
    return [sign for sign in signs if sign.moves == least]


def allowed_s(sign: Sign, limit_s: float) -> float:
    """How long a rank may be at what it does, `limit_s` at least."""
    known = ALLOWED_S.get(Doing(sign.doing))
    if known is None and sign.step_s is None:
        known = ALLOWED_S[Doing.FIRST_STEP]
    return max(limit_s, STEP_PATIENCE * (sign.step_s or 0.0) if known is None else known)


def why_silent(late: list[Sign], silent_s: Mapping[int, float]) -> str:
    """In words."""
    first = late[0]
    who, _, was = _named(late)
    return (
        f"{who} gave no sign of life for {silent_s[first.rank]:.0f} s after step {first.step}, "
        f"and {was} ended"
    )


def why_stalled(behind: list[Sign], still_s: Mapping[int, float], num_ranks: int) -> str:
    """In words."""
    first = behind[0]
    who, are, was = _named(behind)
    others = ", the others wait" if len(behind) < num_ranks else ""
    return (
        f"no rank has moved for {still_s[first.rank]:.0f} s: {who} {are} {first.doing} after step "
        f"{first.step}{others}, and {was} ended"
    )


def _named(signs: list[Sign]) -> tuple[str, str, str]:
    """Who, and the verbs that go with them."""
    if len(signs) == 1:
        return signs[0].name, "is", "was"
    more = f" and {len(signs) - 2} more" if len(signs) > 2 else ""
    return f"{signs[0].name} and {signs[1].name}{more}", "are", "were"
