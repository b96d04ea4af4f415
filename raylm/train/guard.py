"""The divergence guard: which step went wrong, and which samples are left out for it; pure.

A step is bad if its loss or its gradient's norm is no finite number, or if the loss lies far
above those of the steps before it. The run then goes back to its last checkpoint, and the
window of samples of the bad step is skipped: step `n` trains on the n-th window that is not
skipped. Everything is a function of the losses and of the skipped windows, so that a killed and
resumed run decides the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection

from raylm.config.train import GuardConfig

HISTORY = 64
"""Losses that are looked back on."""
_LEAST = 16
_NORMAL = 1.4826  # median absolute deviation to standard deviation, for a normal distribution


def verdict(
    history: Collection[float], loss: float, grad_norm: float | None, config: GuardConfig
) -> str | None:
    """Why a step is bad, or None.

    Args:
        history: losses of the steps before it, oldest first.
        loss: nats per target token.
        grad_norm: before clipping; None where it is not known.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss:g}"
    if grad_norm is not None and not math.isfinite(grad_norm):
        return f"the gradient's norm is {grad_norm:g}"
    recent = list(history)[-HISTORY:]
    if not config.spike_sigma or len(recent) < _LEAST:
        return None
    middle = statistics.median(recent)
    spread = _NORMAL * statistics.median(abs(x - middle) for x in recent)
    # A run whose losses hardly differ must not take a small step up for a spike.
    limit = middle + config.spike_sigma * max(spread, 0.01 * abs(middle))
    if loss > limit:
        return f"the loss is {loss:.3f}, {config.spike_sigma:g} deviations above {middle:.3f}"
    return None


def window_of(step: int, skipped: Collection[int]) -> int:
    """The window of samples that step `step` (from 0) trains on."""
    window = step
    for bad in sorted(skipped):
        if bad <= window:
            window += 1
    return window
