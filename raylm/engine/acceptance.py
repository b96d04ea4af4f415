"""How often the guesses for a sequence are right, and how many are worth their time: pure.

A guessed token is worth the chance that it and all guessed before it are right, and costs what a
step takes longer with it. As many are taken as give the most tokens a second: the expected gain
of arXiv:2211.17192, section 3.3, over a whole batch and with costs that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MEMORY = 0.9  # what is left of a trial after the next one: ten count
_REST = 0.98  # what is left of them after a step without one: in a hundred steps it tries again
_PRIOR_TRIALS = 2.0  # what others' guesses came to counts as much as so many of its own
_LEAST_GAIN = 1.03  # a smaller one may be none: costs are measured on a machine that does more
_LEAST_CHANCE = 0.1
_NEW_AFTER = 128  # steps
_LEAST_S = 1e-9
_FIXED_TOKENS = 3.0  # what a step costs without any, in tokens; until it was measured

Seconds = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(slots=True)
class Acceptance:
    """Guesses that were right, of those that could be; older ones count less."""

    num_right: float = 0.0
    num_tried: float = 0.0

    def note(self, num_right: int, num_tried: int) -> None:
        """So many guesses in a row came true, of those that were tried."""
        # Those behind the first wrong one tell nothing.
        for index in range(min(num_right + 1, num_tried)):
            self.num_right = self.num_right * _MEMORY + (index < num_right)
            self.num_tried = self.num_tried * _MEMORY + 1

    def rest(self) -> None:
        """Nothing was tried in this step."""
        self.num_right *= _REST
        self.num_tried *= _REST

    def chance(self, prior: float) -> float:
        """Of the next guess to be right."""
        return (self.num_right + _PRIOR_TRIALS * prior) / (self.num_tried + _PRIOR_TRIALS)


class StepCost:
    """Seconds of steps by their tokens, as measured lately; what was not is worked out."""

    def __init__(self) -> None:
        # By bucket: tokens, seconds, and the number of the step that was measured last.
        self._measured: dict[int, tuple[int, float, int]] = {}
        self._num_steps = 0

    @property
    def is_measured(self) -> bool:
        """Whether it stands on anything."""
        return bool(self._measured)

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._num_steps += 1
        bucket = _bucket(num_tokens)
        _, mean, _ = self._measured.get(bucket, (0, seconds, 0))
        # Down at once and up slowly: a machine that does other things too only adds to it.
        mean += (0.5 if seconds < mean else 0.1) * (seconds - mean)
        self._measured[bucket] = (num_tokens, max(mean, _LEAST_S), self._num_steps)
        if self._num_steps % _NEW_AFTER == 0:
            # A size that is never used because it once was slow gets another chance.
            since = self._num_steps - _NEW_AFTER
            self._measured = {b: m for b, m in self._measured.items() if m[2] > since}

    def seconds(self, num_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of steps of so many tokens; beyond what was measured in the shape of a straight line."""
        if not self._measured:
            return num_tokens + _FIXED_TOKENS
        measured = sorted(self._measured.values())
        sizes = np.array([size for size, _, _ in measured], np.float64)
        # Between two measured sizes a line; outside, the nearest one's share of a line.
        per_token = np.array([mean for _, mean, _ in measured]) / (sizes + _FIXED_TOKENS)
        found: NDArray[np.float64] = np.interp(num_tokens, sizes, per_token)
        return found * (num_tokens + _FIXED_TOKENS)


def num_worth_guessing(
    chances: Sequence[float],
    offered: Sequence[int],
    seconds: Seconds,
    num_tokens: int,
    pass_s: float = 0.0,
) -> list[int]:
    """How many of the `offered` guesses of each sequence go into a step of `num_tokens` tokens.

    `chances` are of one guess to be right, by sequence; `seconds` is of steps by their tokens;
    `pass_s` is what it takes to guess one more token behind every sequence.
    """
    if not any(n and p >= _LEAST_CHANCE for p, n in zip(chances, offered, strict=True)):
        return [0] * len(chances)  # at once: this is every step of answers that repeat nothing
    worth, depths, owners = _candidates(chances, offered)
    gained = len(chances) + np.concatenate([[0.0], np.cumsum(worth)])
    guessing_s = pass_s * np.concatenate([[0], np.maximum.accumulate(depths)])
    verifying_s = seconds(num_tokens + np.arange(len(gained), dtype=np.float64))
    rates = gained / (verifying_s + guessing_s)
    best = int(rates.argmax())
    if rates[best] < _LEAST_GAIN * rates[0]:
        best = 0
    counts: list[int] = np.bincount(owners[:best], minlength=len(chances)).tolist()
    return counts


def _candidates(
    chances: Sequence[float], offered: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Worth, depth and sequence of each guess, the worthiest first."""
    depths = np.concatenate([np.arange(0), *(np.arange(1, count + 1) for count in offered)])
    owners = np.repeat(np.arange(len(offered)), offered)
    worth = np.asarray(chances)[owners] ** depths
    # Of one sequence never a later one before an earlier one, were they worth the same.
    order = np.lexsort((depths, -worth))
    order = order[worth[order] >= _LEAST_CHANCE]
    return worth[order], depths[order], owners[order]


def _bucket(num_tokens: int) -> int:
    return round(8 * math.log2(num_tokens))  # up to a dozen tokens each number is one of its own
