import math

import pytest

from raylm.config.train import GuardConfig
from raylm.train.guard import verdict, window_of

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
