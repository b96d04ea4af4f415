"""Figures of a level of load, from its records; pure.

The window of the rates begins when the first measured request was due and ends when the last
measured one ended. The load was whole in all of it, so that neither a warm-up nor a tail is in
it. What came in the window counts, whichever request it belongs to: requests by their end,
tokens by the arrival of their pieces, each with its answer's tokens per piece.

Latencies are those of measured requests with a whole answer; percentiles are numpy's, linear
between neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.bench.record import CUT, Record
from raylm.bench.slo import Slo

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
LATENCIES: dict[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
}
"""Those that there is one of to a request; all in seconds."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Some figures of a sample, in seconds."""

    count: int
    mean: float
    max: float
    percentiles: dict[str, float]
    not_meaningful: tuple[str, ...]
    """Percentiles beyond which less than one of so few samples lies."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that kept every bound of the SLO."""

    slo: str
    share: float
    """Of the measured requests, failed ones included."""
    per_s: float
    """Those that ended in the window."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a level of load came to."""

    num_requests: int
    """Measured ones, whatever became of them."""
    num_ok: int
    num_cut: int
    failures: dict[str, int]
    """By class."""
    window_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: float | None
    """Of a request on average, as the server counted."""
    output_tokens: float | None
    num_without_usage: int
    """Answers whose pieces were counted as tokens, because the server gave no count."""
    num_without_text: int
    """Whole answers without a piece of text, and so without a time to the first."""
    latency: dict[str, Distribution | None]
    """`ttft`, `tpot`, `e2e`; `gap` between pieces of an answer; `lateness` of the client."""
    goodput: Goodput | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def figures(records: Sequence[Record], slo: Slo | None = None) -> Figures:
    """The figures of one level."""
    measured = [record for record in records if record.phase == "measured"]
    ok = [record for record in measured if record.is_ok]
    window = window_of(measured)
    window_s = window[1] - window[0]
    ended = [r for r in records if r.is_ok and window[0] <= r.ended_at_s <= window[1]]
    good = None
    if slo is not None:
        finished = [record for record in measured if record.failure != CUT]
        good = Goodput(
            str(slo),
            _ratio(sum(map(slo.is_met, finished)), len(finished)),
            _ratio(sum(map(slo.is_met, ended)), window_s),
        )
    failures = Counter(r.failure for r in measured if r.failure is not None)
    return Figures(
        num_requests=len(measured),
        num_ok=len(ok),
        num_cut=failures.pop(CUT, 0),
        failures=dict(failures.most_common()),
        window_s=window_s,
        requests_per_s=_ratio(len(ended), window_s),
        output_tokens_per_s=_ratio(float(tokens_at(records, window)[1].sum()), window_s),
        prompt_tokens=_mean([r.prompt_tokens for r in ok if r.prompt_tokens is not None]),
        output_tokens=_mean([r.num_tokens for r in ok]),
        num_without_usage=sum(r.completion_tokens is None for r in ok),
        num_without_text=sum(not r.chunks_at_s for r in ok),
        latency={
            **{name: distribution(values_of(ok, of)) for name, of in LATENCIES.items()},
            "gap": distribution(np.concatenate([[], *(np.diff(r.chunks_at_s) for r in ok)])),
            "lateness": distribution(values_of(measured, lambda record: record.lateness_s)),
        },
        goodput=good,
    )


def values_of(
    records: Iterable[Record], of: Callable[[Record], float | None]
) -> npt.NDArray[np.float64]:
    """A latency of each record that has it."""
    return np.array([x for record in records if (x := of(record)) is not None], dtype=np.float64)


def distribution(values: npt.ArrayLike) -> Distribution | None:
    """Mean, maximum and percentiles; None of nothing."""
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return None
    found = np.percentile(sample, list(PERCENTILES.values()))
    return Distribution(
        count=sample.size,
        mean=float(sample.mean()),
        max=float(sample.max()),
        percentiles=dict(zip(PERCENTILES, map(float, found), strict=True)),
        # Rounded: 1 - 0.999 is not a thousandth.
        not_meaningful=tuple(
            name for name, q in PERCENTILES.items() if round(sample.size * (100 - q), 6) < 100
        ),
    )


def window_of(measured: Sequence[Record]) -> tuple[float, float]:
    """Begin and end of the window, in seconds since the level began; (0, 0) of no request."""
    if not measured:
        return 0.0, 0.0
    return min(r.scheduled_at_s for r in measured), max(r.ended_at_s for r in measured)


def tokens_at(
    records: Sequence[Record], window: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """When pieces of text came in the window, and how many tokens each was.

    Of an answer that was not brought to its end nobody knows the tokens; its pieces count as
    those of the others do on average.
    """
    whole = [r for r in records if r.is_ok and r.chunks_at_s]
    pieces = sum(len(r.chunks_at_s) for r in whole)
    average = sum(r.num_tokens for r in whole) / pieces if pieces else 1.0
    times, tokens = [np.empty(0)], [np.empty(0)]
    for record in records:
        at_s = np.array(record.chunks_at_s, dtype=np.float64)
        each = record.num_tokens / len(at_s) if record.is_ok and len(at_s) else average
        at_s = at_s[(at_s >= window[0]) & (at_s <= window[1])]
        times.append(at_s)
        tokens.append(np.full(len(at_s), each))
    return np.concatenate(times), np.concatenate(tokens)


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
