import math

import pytest

from raylm.config.train import GuardConfig
from raylm.train.guard import (
    FORGET_STEPS,
    most_skips,
    recent_skips,
    verdict,
    verdict_on_weights,
    window_of,
)

CALM = [3.0 + 0.1 * (i % 5) for i in range(40)]


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (3.2, 1.0, None),
        (3.2, None, None),
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (3.2, math.inf, "the gradient's norm is inf"),
        (9.0, 1.0, "the loss is 9.000, 10 deviations above 3.200"),
        (4.0, 1.0, None),
        (0.1, 1.0, None),
    ],
)
def test_verdicts(loss: float, norm: float | None, said: str | None) -> None:
    assert verdict(CALM, loss, norm, GuardConfig(spike_sigma=10)) == said


def test_spikes_are_looked_for_only_once_enough_losses_are_known() -> None:
    assert verdict(CALM[:15], 9.0, 1.0, GuardConfig()) is None
    assert verdict(CALM[:16], 9.0, 1.0, GuardConfig()) is not None
    assert verdict(CALM, 9.0, 1.0, GuardConfig(spike_sigma=0)) is None
    assert verdict(CALM, math.nan, 1.0, GuardConfig(spike_sigma=0)) is not None


def test_losses_that_hardly_differ_make_no_spike_of_a_small_step() -> None:
    assert verdict([2.0] * 40, 2.1, 1.0, GuardConfig(spike_sigma=10)) is None


@pytest.mark.parametrize(
    ("skipped", "windows"),
    [
        ((), [0, 1, 2, 3]),
        ((0,), [1, 2, 3, 4]),
        ((2,), [0, 1, 3, 4]),
        ((3, 2), [0, 1, 4, 5]),
        ((1, 3), [0, 2, 4, 5]),
    ],
)
def test_a_step_trains_on_the_next_window_that_is_not_skipped(
    skipped: tuple[int, ...], windows: list[int]
) -> None:
    assert [window_of(step, skipped) for step in range(4)] == windows


@pytest.mark.parametrize(
    ("finite", "held_out_loss", "said"),
    [
        (True, None, None),
        (True, 3.0, None),
        (False, 3.0, "weights are no finite numbers"),
        (True, math.nan, "the held-out loss is nan"),
        (True, math.inf, "the held-out loss is inf"),
    ],
)
def test_what_a_good_step_leaves_is_judged_too(
    finite: bool, held_out_loss: float | None, said: str | None
) -> None:
    assert verdict_on_weights(finite, held_out_loss) == said


def test_a_skip_counts_for_a_thousand_steps_and_bounds_what_a_run_visits() -> None:
    assert FORGET_STEPS == 1000
    assert recent_skips(999, [0, 500]) == 2
    assert recent_skips(1000, [0, 500]) == 1
    assert recent_skips(1500, [0, 500]) == 0
    # Back at an older checkpoint, those ahead count as well.
    assert recent_skips(400, [500]) == 1
    assert [most_skips(n, GuardConfig(max_rollbacks=3)) for n in (1, 1000, 1001)] == [3, 3, 6]
    # As many as the guard lets through, the earliest possible: it is the bound.
    skips: list[int] = []
    for step in range(2500):
        while recent_skips(step, skips) < 3:
            skips.append(step)
    assert len(skips) == most_skips(2500, GuardConfig(max_rollbacks=3))
