"""The learning rate of every step: a pure function of step and horizon."""

from __future__ import annotations

import math

from raylm.config.train import ScheduleConfig

# While a time limit's horizon is not known yet, the rate rises by this share of the peak a
# step: at most fifty steps are timed, so that a quarter of the peak is reached by then.
_BLIND_RISE = 0.005


def lr_factor(schedule: ScheduleConfig, step: int, horizon: int | None, fixed_at: int = 0) -> float:
    """The rate of step `step` (from 0) of `horizon` steps, as a fraction of the peak.

    Args:
        horizon: None while a time limit's is not known yet.
        fixed_at: the step at which it became known; 0 if it was given. The warm-up goes on from
            the rate of then and lasts at least as long again: a jump to the peak costs a short
            run more than it gains.
    """
    if not schedule.warmup:
        warmup = 0
    elif horizon is None or step < fixed_at:
        return min(1.0, _BLIND_RISE * (step + 1))
    else:
        warmup = max(1, 2 * fixed_at, round(schedule.warmup * horizon))
        if step < warmup:
            begun = min(1.0, _BLIND_RISE * fixed_at)
            return begun + (1.0 - begun) * (step + 1 - fixed_at) / (warmup - fixed_at)
    if horizon is None:
        return 1.0
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        start = max(warmup, horizon - round(schedule.decay * horizon))
        if step < start:
            return 1.0
        done = (step - start + 1) / max(1, horizon - start)
        return 1.0 - (1.0 - schedule.floor) * min(1.0, done)
    done = min(1.0, (step - warmup + 1) / max(1, horizon - warmup))
    left = 1.0 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.floor + (1.0 - schedule.floor) * left


def fix_horizon(step: int, elapsed_s: float, last_step_s: float, time_s: float) -> int | None:
    """The number of steps that fit into `time_s`, once enough of them have been timed.

    Args:
        step: steps done.
        elapsed_s: seconds since the first step ended (the first one pays for allocations).
        last_step_s: seconds of the first step.
        time_s: the limit for all steps together.

    Returns:
        The horizon, or None while fewer than three steps and 5 % of the time are timed.
    """
    timed = step - 1
    spent_s = elapsed_s + last_step_s
    if timed < 3 or (spent_s < 0.05 * time_s and timed < 50):
        return None if spent_s < time_s else max(1, step)
    per_step_s = elapsed_s / timed
    return max(step, step + math.floor((time_s - spent_s) / per_step_s))
