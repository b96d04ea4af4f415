import pytest

from raylm.progress import Tick
from raylm.train.watch import _tick

LINE = {"step": 12, "loss": 2.3456, "tokens_per_s": 900.0, "elapsed_s": 30.0, "horizon": 40}


@pytest.mark.parametrize(
    ("more", "time_s", "expected"),
    [
        (
            {"recent_tokens_per_s": 1234.5, "mfu": 0.431, "left_s": 21.0},
            None,
            Tick("train", "loss 2.346, 1,234 tokens/s, MFU 43%", 12, 40, "steps", left_s=21.0),
        ),
        (
            {"recent_tokens_per_s": None, "mfu": None, "left_s": None, "horizon": None},
            90.0,
            Tick("train", "loss 2.346, 900 tokens/s, MFU unknown", 30.0, 90.0, "s"),
        ),
        # A line of an older raylm, in a run that is resumed.
        ({}, None, Tick("train", "loss 2.346, 900 tokens/s, MFU unknown", 12, 40, "steps")),
    ],
)
def test_what_the_progress_line_says_of_a_step(
    more: dict[str, object], time_s: float | None, expected: Tick
) -> None:
    assert _tick({**LINE, **more}, time_s) == expected
