"""The divergence guard: which step went wrong, and which samples are left out for it; pure.

A step is bad if its loss or its gradient's norm is no finite number, or if the loss lies far
above those of the steps before it; also if it leaves weights, or a held-out loss, that are none.
The run then goes back to its last checkpoint, and the window of samples of the bad step is
skipped: step `n` trains on the n-th window that is not skipped. Everything is a function of the
losses and of the skipped windows, so that a killed and resumed run decides the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection

from raylm.config.train import GuardConfig

HISTORY = 64
"""Losses that are looked back on."""
FORGET_STEPS = 1000
"""After so many steps more, a skipped window no longer counts against the run."""
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


def verdict_on_weights(finite: bool, held_out_loss: float | None) -> str | None:
    """Why the last step is bad though its own figures were good, or None.

    Args:
        finite: whether all weights are finite numbers.
        held_out_loss: of this very step; None where it was not measured.
    """
    if not finite:
        return "weights are no finite numbers"
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        return f"the held-out loss is {held_out_loss:g}"
    return None


def recent_skips(step: int, skipped_at: Collection[int]) -> int:
    """How many of the skips count against a run at `step`: those of the last `FORGET_STEPS`."""
    return sum(at > step - FORGET_STEPS for at in skipped_at)


def most_skips(steps: int, config: GuardConfig) -> int:
    """How many windows a run of so many steps can skip and still reach its end."""
    return -(-steps // FORGET_STEPS) * config.max_rollbacks


def window_of(step: int, skipped: Collection[int]) -> int:
    """The window of samples that step `step` (from 0) trains on."""
    window = step
    for bad in sorted(skipped):
        if bad <= window:
            window += 1
    return window
