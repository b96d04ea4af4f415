import itertools

import pytest

from raylm.config.train import ScheduleConfig
from raylm.train.schedule import fix_horizon, lr_factor


def test_cosine_rises_peaks_and_ends_at_the_floor() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup=0.1, floor=0.1)
    factors = [lr_factor(schedule, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[54] == pytest.approx(0.55, abs=0.01)
    assert factors[99] == pytest.approx(0.1)
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.5, floor=0.0)
    factors = [lr_factor(schedule, step, 100) for step in range(100)]
    assert set(factors[10:50]) == {1.0}
    assert factors[74] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.0)


def test_linear_falls_in_a_line_to_the_floor() -> None:
    schedule = ScheduleConfig(kind="linear", warmup=0.1, floor=0.1)
    factors = [lr_factor(schedule, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    falls = [a - b for a, b in itertools.pairwise(factors[9:])]
    assert falls == pytest.approx([0.9 / 90] * 90)
    assert factors[99] == pytest.approx(0.1)
    assert lr_factor(schedule, 150, 100) == pytest.approx(0.1)


def test_constant_stays_at_the_peak() -> None:
    schedule = ScheduleConfig(kind="constant", warmup=0)
    assert {lr_factor(schedule, step, 10) for step in range(10)} == {1.0}


def test_the_rate_rises_slowly_while_the_horizon_is_unknown() -> None:
    factors = [lr_factor(ScheduleConfig(), step, None) for step in (0, 9, 500)]
    assert factors == pytest.approx([0.005, 0.05, 1.0])
    assert lr_factor(ScheduleConfig(warmup=0), 0, None) == 1.0


@pytest.mark.parametrize(("horizon", "fixed_at"), [(260, 13), (100_000, 51), (60, 20)])
def test_the_warm_up_goes_on_without_a_jump_once_the_horizon_is_known(
    horizon: int, fixed_at: int
) -> None:
    schedule = ScheduleConfig(kind="constant", warmup=0.05)
    factors = [
        lr_factor(schedule, step, horizon if step >= fixed_at else None, fixed_at)
        for step in range(horizon)
    ]
    warmup = max(2 * fixed_at, round(0.05 * horizon))
    assert factors[:warmup] == sorted(factors[:warmup])
    assert max(b - a for a, b in itertools.pairwise(factors)) <= 1 / fixed_at
    assert factors[warmup - 1] == 1.0 and factors[warmup - 2] < 1.0


@pytest.mark.parametrize(
    ("step", "elapsed", "first", "limit", "horizon"),
    [
        (1, 0.0, 2.0, 100.0, None),  # nothing timed yet
        (3, 2.0, 2.0, 100.0, None),  # two timed
        (6, 5.0, 2.0, 100.0, 99),  # 1 s a step, 93 s left
        (51, 0.5, 0.1, 100.0, 9991),  # fast steps: enough of them
        (2, 60.0, 60.0, 100.0, 2),  # over the limit at once: stop here
    ],
)
def test_the_horizon_is_fixed_from_the_first_timed_steps(
    step: int, elapsed: float, first: float, limit: float, horizon: int | None
) -> None:
    assert fix_horizon(step, elapsed, first, limit) == horizon
