"""Figures out of per-sequence sums, each with a 95 % interval over sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raylm.config.train import ObjectiveName

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its 95 % bootstrap interval (Efron, percentile method)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Figure:
    """Sum over sum, sequences drawn again with replacement; the draw is fixed."""
    return bootstrap(np.stack([numerator, denominator], 1), lambda s: s[..., 0] / s[..., 1])


def bootstrap(columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Figure:
    """A statistic of column sums; `columns` is [sequences, k], the statistic takes [..., k]."""
    value = float(statistic(columns.sum(0)))
    draws = np.random.default_rng(0).multinomial(
        len(columns), np.full(len(columns), 1 / len(columns)), size=_RESAMPLES
    )
    with np.errstate(all="ignore"):
        low, high = np.nanquantile(statistic(draws @ columns), [0.025, 0.975])
    return Figure(value, float(low), float(high))


def held_out_figures(scores: np.ndarray, objective: ObjectiveName = "causal") -> dict[str, Figure]:
    """Figures from `scores.sequence_scores` rows: loss and accuracy; perplexity of tokens; bits
    per byte of text that is said from left to right; of preferences, how many are kept.
    """
    nats, targets, num_bytes, hits, num_pairs, kept = scores.T
    loss = ratio(nats, targets)
    if objective == "classify":
        return {"loss": loss, "accuracy": ratio(hits, targets)}
    found = {
        "loss": loss,
        "perplexity": Figure(*(math.exp(x) for x in (loss.value, loss.low, loss.high))),
        "top1_accuracy": ratio(hits, targets),
    }
    if objective != "mlm":
        found["bits_per_byte"] = ratio(nats / math.log(2), num_bytes)
    if objective == "dpo":
        found["preference_accuracy"] = ratio(kept, num_pairs)
    return found


def difference_figures(rows: np.ndarray) -> dict[str, Figure]:
    """KL, agreement and perplexity ratio from `scores.sequence_differences` rows."""
    targets, kl, equal, ours, theirs = rows.T
    return {
        "kl": ratio(kl, targets),
        "top1_agreement": ratio(equal, targets),
        "perplexity_ratio": bootstrap(
            np.stack([ours - theirs, targets], 1), lambda s: np.exp(s[..., 0] / s[..., 1])
        ),
        "perplexity": bootstrap(
            np.stack([ours, targets], 1), lambda s: np.exp(s[..., 0] / s[..., 1])
        ),
        "reference_perplexity": bootstrap(
            np.stack([theirs, targets], 1), lambda s: np.exp(s[..., 0] / s[..., 1])
        ),
    }
