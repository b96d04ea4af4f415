import io

import pytest

from raylm.cli.output import human_bytes, human_s, table
from raylm.cli.progress import Lines, Pace, figures, is_end
from raylm.progress import Tick


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    pace = Pace(0.0)
    for second in range(0, 101, 10):
        pace.note(second * (1.0 if second <= 50 else 2.0), second)
    assert pace.rate == pytest.approx(2.0, abs=0.01)
    assert pace.left_s(240) == pytest.approx(20, abs=0.5)


def test_nothing_is_said_of_a_rate_that_is_not_known() -> None:
    pace = Pace(0.0)
    assert (pace.rate, pace.left_s(10)) == (None, None)
    pace.note(0, 0)
    pace.note(0, 5)
    assert pace.rate is None
    pace.note(8, 6)
    pace.note(1, 7)
    assert pace.rate is None, "it began anew"


def test_figures() -> None:
    pace = Pace(0.0)
    pace.note(0, 0.0)
    pace.note(12, 8.0)
    tick = Tick("train", "loss 3.1", 12, 40, "steps")
    assert figures(tick, pace, 8.0) == "12/40 steps, 1.5 steps/s, 8.0 s, 18.7 s left"
    # Who works knows better: it has seen the checkpoints too.
    tick = Tick("train", "loss 3.1", 12, 40, "steps", left_s=42.0)
    assert figures(tick, pace, 8.0) == "12/40 steps, 1.5 steps/s, 8.0 s, 42.0 s left"
    assert figures(Tick("data", "reading"), Pace(0.0), 3.0) == "3.0 s"
    assert is_end(Tick("data", "", 1, 1))


def test_large_numbers_have_no_exponents() -> None:
    pace = Pace(0.0)
    pace.note(0, 0.0)
    pace.note(5_242_880, 2.0)
    tick = Tick("data", "reading", 5_242_880, 10_667_100, "B")
    assert figures(tick, pace, 2.0) == "5.0 MiB of 10.2 MiB, 2.5 MiB/s, 2.0 s, 2.1 s left"
    tick = Tick("train", "loss 2", 1_234_567, 2_000_000, "steps")
    assert figures(tick, Pace(0.0), 1.0) == "1,234,567/2,000,000 steps, 1.0 s"


def test_without_a_terminal_a_line_every_five_seconds() -> None:
    out, now = io.StringIO(), 0.0
    show = Lines(out, clock=lambda: now)
    for step in range(101):
        now = step * 0.2
        show(Tick("train", "loss 3.1", step, 100, "steps"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "train: loss 3.1 (0/100 steps, 0.0 s)"
    assert lines[1] == "train: loss 3.1 (25/100 steps, 5 steps/s, 5.0 s, 15.0 s left)"
    assert lines[-1] == "train: loss 3.1 (100/100 steps, 5 steps/s, 20.0 s)"


def test_what_happened_is_shown_at_once() -> None:
    out = io.StringIO()
    show = Lines(out, clock=lambda: 0.0)
    show(Tick("train", "starting"))
    show(Tick("train", "still starting"))
    show(Tick("train", "rank 1 died", is_notice=True))
    assert out.getvalue().splitlines() == ["train: starting (0.0 s)", "train: rank 1 died (0.0 s)"]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_bytes(value: int, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_seconds(value: float, text: str) -> None:
    assert human_s(value) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("a", "b"), [("xxx", 1)]) == "a    b\nxxx  1"


def test_what_is_to_be_known_is_shown_whenever_it_comes() -> None:
    out, now = io.StringIO(), 0.0
    show = Lines(out, clock=lambda: now)
    for step in range(4):
        show(Tick("train", f"loss {step}", step, 100, "steps"))
        show(Tick("train", f"passed over {step}", is_notice=True))
    assert out.getvalue().splitlines() == [
        "train: loss 0 (0/100 steps, 0.0 s)",
        *(f"train: passed over {step} (0.0 s)" for step in range(4)),
    ]
