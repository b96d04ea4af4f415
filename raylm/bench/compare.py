"""compare: a run beside an older one, figure by figure, each ratio with its interval.

An interval is the 95 % percentile bootstrap (Efron, 1979) of the ratio of new to old: requests of
a level are drawn again on both sides, for tokens/s equal slots of the window. Requests of one
level wait for one another, so that the true intervals are somewhat wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.bench.figures import LATENCIES, tokens_at, values_of, window_of
from raylm.bench.result import LevelResult, Run, warnings
from raylm.bench.settings import Settings

_Sample = npt.NDArray[np.float64]
_DRAWS = 1000
_SLOTS = 20
_MIN_SAMPLES = 10
_SERVER = frozenset({"url", "model", "headers"})
_BOUNDS = frozenset({"timeout_s", "max_time_s", "max_requests"})
_TOLD_OTHERWISE = frozenset({"levels", "trace", "prompts"})


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of one level: new over old."""

    level: str
    figure: str
    old: float
    new: float
    ratio: float
    low: float | None
    """Of the interval; None where the samples are too few for one, or are nought in part."""
    high: float | None
    slowdown: float
    """By how much the new one is slower: the ratio, of rates its inverse."""
    verdict: str
    """`slower`, `faster`, or `no difference seen`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs beside each other."""

    ratios: tuple[Ratio, ...]
    other_settings: tuple[str, ...]
    """In what the loads differ: the ratios then say little of the servers."""
    missing: tuple[str, ...]
    """Levels that only one of the two has."""
    failures: tuple[str, ...]
    """Levels at which not as many failed: latencies are those of the others alone."""
    doubts: tuple[str, ...]
    """What the older run had to beware of; a client that was late is not told from a server."""

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.ratios:
            return "nothing to compare: no level is in both"
        told = []
        for verdict in ("slower", "faster"):
            found = [r for r in self.ratios if r.verdict == verdict]
            if found:
                worst = max(found, key=lambda r: abs(np.log(r.slowdown)))
                factor = max(worst.slowdown, 1 / worst.slowdown)
                told.append(
                    f"{verdict} in {len(found)} of {len(self.ratios)} figures, most in "
                    f"{worst.figure} at {worst.level}: {factor:.2f}x"
                )
        return "; ".join(told) or "no difference beyond the intervals"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "verdict": self.verdict}

    def slower_than(self, factor: float) -> list[Ratio]:
        """The figures that are slower by this factor or more, and by more than chance."""
        return [r for r in self.ratios if r.verdict == "slower" and r.slowdown >= factor]


def compare(old: Run, new: Run, seed: int = 0) -> Comparison:
    """Levels of the same load beside each other."""
    before = {level.name: level for level in old.levels}
    now = {level.name: level for level in new.levels}
    random = np.random.default_rng(seed)
    ratios = [
        ratio
        for name, level in now.items()
        if name in before
        for ratio in _level(before[name], level, random)
    ]
    return Comparison(
        tuple(ratios),
        differences(old.settings, new.settings),
        tuple(sorted(before.keys() ^ now.keys())),
        tuple(
            f"{name}: {was} before, {are} now"
            for name in before
            if name in now and (was := _failed(before[name])) != (are := _failed(now[name]))
        ),
        tuple(warnings(old)),
    )


def _failed(level: LevelResult) -> str:
    found = level.figures(None)
    failed = sum(found.failures.values())
    return f"{failed / max(1, found.num_requests):.1%} failed" if failed else "none failed"


def differences(old: Settings, new: Settings) -> tuple[str, ...]:
    """In what two loads differ, but for the server, its levels and the bounds of the run."""
    a, b = asdict(old), asdict(new)
    return tuple(
        f"{name}: {a[name]!r} before, {b[name]!r} now"
        for name in a
        if a[name] != b[name] and name not in _SERVER | _BOUNDS | _TOLD_OTHERWISE
    )


def _level(old: LevelResult, new: LevelResult, random: np.random.Generator) -> list[Ratio]:
    ratios = []
    for name, of in LATENCIES.items():
        a, b = (
            values_of((r for r in level.records if r.phase == "measured" and r.is_ok), of)
            for level in (old, new)
        )
        for figure, q in (("p50", 50.0), ("p99", 99.0)):
            # Of fewer than a hundred no p99 can be told; pieces that all came at once took no time.
            is_told = min(len(a), len(b)) * (100 - q) >= 100
            if is_told and min(np.percentile(a, q), np.percentile(b, q)) > 0:
                ratios.append(
                    ratio(new.name, f"{name} {figure}", a, b, percentile(q), random, is_rate=False)
                )
    a, b = _tokens_by_slot(old), _tokens_by_slot(new)
    if a.sum() and b.sum():
        ratios.append(ratio(new.name, "output tokens/s", a, b, mean, random, is_rate=True))
    return ratios


def ratio(
    level: str,
    figure: str,
    old: _Sample,
    new: _Sample,
    of: Callable[[_Sample], _Sample],
    random: np.random.Generator,
    *,
    is_rate: bool,
) -> Ratio:
    """The ratio of a figure of two samples, and its interval.

    Args:
        of: the figure of each row of a table of samples.
        is_rate: more is better.
    """
    first, second = float(of(old[None])[0]), float(of(new[None])[0])
    found = second / first
    low = high = None
    verdict = "no difference seen"
    if min(len(old), len(new)) >= _MIN_SAMPLES:
        before = _drawn(old, of, random)
        # Of a figure that may as well be nought there is no ratio to tell.
        if before.min() > 0:
            drawn = _drawn(new, of, random) / before
            low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
            if low > 1 or high < 1:
                verdict = "slower" if (low > 1) != is_rate else "faster"
    slowdown = 1 / found if is_rate else found
    return Ratio(level, figure, first, second, found, low, high, slowdown, verdict)


def percentile(q: float) -> Callable[[_Sample], _Sample]:
    """The percentile of each row."""
    return lambda rows: np.percentile(rows, q, axis=1)


def mean(rows: _Sample) -> _Sample:
    """The mean of each row."""
    return np.asarray(rows.mean(axis=1))


def _drawn(
    sample: _Sample, of: Callable[[_Sample], _Sample], random: np.random.Generator
) -> _Sample:
    # Some rows at a time: a thousand draws of a long run would not fit the memory.
    rows = max(1, min(_DRAWS, 2_000_000 // len(sample)))
    parts = [
        of(sample[random.integers(len(sample), size=(min(rows, _DRAWS - at), len(sample)))])
        for at in range(0, _DRAWS, rows)
    ]
    return np.concatenate(parts)


def _tokens_by_slot(level: LevelResult) -> _Sample:
    """Tokens a second in equal slots of the window."""
    window = window_of([record for record in level.records if record.phase == "measured"])
    if window[1] <= window[0]:
        return np.zeros(_SLOTS)
    times, tokens = tokens_at(level.records, window)
    slots, _ = np.histogram(times, bins=_SLOTS, range=window, weights=tokens)
    return slots * _SLOTS / (window[1] - window[0])
