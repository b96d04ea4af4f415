import pytest

from raylm.train.recent import WINDOW_STEPS, Recent


def recent(*seconds: float, between_s: float = 0.0) -> Recent:
    """Steps of 100 tokens and 1e9 FLOPs, with something between them."""
    found, now = Recent(), 50.0
    for step_s in seconds:
        now += step_s
        found.note(step_s, 100, 1e9, now)
        now += between_s
    return found


def left(found: Recent, *, done: int = 10, horizon: int | None = 110) -> float | None:
    return found.left_s(done=done, horizon=horizon, elapsed_s=30.0, time_s=90.0)


def test_the_first_step_counts_only_as_long_as_it_is_alone() -> None:
    assert Recent().tokens_per_s is None
    assert recent(20.0).tokens_per_s == 5.0
    assert recent(20.0, 2.0).tokens_per_s == 50.0
    assert recent(20.0, 2.0, 3.0).flops_per_s == pytest.approx(2e9 / 5)


def test_only_the_last_steps_count() -> None:
    assert recent(*[9.0] * 100, *[0.5] * WINDOW_STEPS).tokens_per_s == 200.0


def test_flops_that_are_not_known_make_the_rate_unknown() -> None:
    found = recent(1.0, 1.0)
    found.note(1.0, 100, None, 60.0)
    assert found.flops_per_s is None
    assert found.tokens_per_s == 100.0


@pytest.mark.parametrize(
    ("found", "horizon", "expected"),
    [
        (recent(20.0), 110, None),  # of a first step nothing follows
        (recent(20.0, 2.0, 2.0), 110, 200.0),
        # Half of the time goes to what is between the steps.
        (recent(20.0, 2.0, 2.0, between_s=2.0), 110, 400.0),
        (recent(20.0, 2.0), 10, 0.0),
        (recent(20.0, 2.0), 9, 0.0),
        (recent(20.0, 2.0), None, 60.0),  # of the time limit
    ],
)
def test_time_left(found: Recent, horizon: int | None, expected: float | None) -> None:
    assert left(found, horizon=horizon) == (None if expected is None else pytest.approx(expected))


def test_after_a_resume_what_was_before_does_not_count() -> None:
    """`done` is of the whole run, the pace of this attempt alone."""
    assert left(recent(5.0, 1.0, 1.0), done=1000, horizon=1100) == pytest.approx(100.0)
