from dataclasses import replace

import pytest

from raylm.train.hung import (
    Unchanged,
    WatchedTime,
    allowed_s,
    silent,
    stalled,
    why_silent,
    why_stalled,
)
from raylm.train.signs import Doing, Sign


def sign(rank: int, beats: int = 1, pid: int = 10) -> Sign:
    return Sign(rank, pid + rank, 0.0, "host", "node", step=3, beats=beats)


def at(rank: int, doing: Doing, moves: int = 5, step_s: float | None = 1.0) -> Sign:
    return replace(sign(rank), doing=doing, moves=moves, step_s=step_s)


def test_silence_is_counted_by_whoever_looks() -> None:
    beats = Unchanged(lambda sign: sign.beats)
    assert beats.look([sign(0), sign(1)], 100.0) == {0: 0.0, 1: 0.0}
    assert beats.look([sign(0, beats=2), sign(1)], 107.0) == {0: 0.0, 1: 7.0}
    # A new process that has beaten as often is somebody else.
    assert beats.look([sign(0, beats=2), sign(1, pid=50)], 109.0) == {0: 2.0, 1: 0.0}


def test_what_nobody_looked_at_is_not_counted() -> None:
    watched = WatchedTime()
    assert [watched.look(now) for now in (1000.0, 1000.5, 1003.0)] == [0.0, 0.5, 3.0]
    # The driver was stopped for an hour: nobody was seen to be silent in it.
    assert watched.look(4603.0) == 8.0
    beats, watched = Unchanged(lambda sign: sign.beats), WatchedTime()
    signs = [sign(0), sign(1)]
    assert beats.look(signs, watched.look(0.0)) == {0: 0.0, 1: 0.0}
    awake = [sign(0, beats=2), sign(1)]
    assert silent(awake, beats.look(awake, watched.look(3600.0)), 30.0) == []


def test_the_silent_ones_are_hung_the_longest_first() -> None:
    signs = [sign(0), sign(1), sign(2)]
    assert silent(signs, {0: 0.5, 1: 31.0, 2: 40.0}, 30.0) == [signs[2], signs[1]]
    assert silent(signs, {0: 0.5, 1: 3.0, 2: 2.0}, 30.0) == []


def test_a_rank_that_starts_may_be_silent_for_longer() -> None:
    starting = replace(sign(1), step=-1)
    signs = [sign(0), starting, sign(2)]
    assert silent(signs, {0: 0.5, 1: 200.0, 2: 0.5}, 30.0) == []
    assert silent(signs, {0: 0.5, 1: 301.0, 2: 0.5}, 30.0) == [starting]


def test_if_all_are_silent_it_was_the_machine_unless_it_lasts() -> None:
    signs = [sign(0), sign(1)]
    assert silent(signs, {0: 59.0, 1: 90.0}, 30.0) == []
    assert silent(signs, {0: 61.0, 1: 90.0}, 30.0) == [signs[1], signs[0]]
    assert silent(signs[:1], {0: 31.0}, 30.0) == signs[:1]


@pytest.mark.parametrize(
    ("doing", "step_s", "hang_s", "allowed"),
    [
        (Doing.STEP, 0.2, 120.0, 120.0),
        (Doing.STEP, 60.0, 120.0, 600.0),
        (Doing.READ, 60.0, 120.0, 600.0),
        (Doing.READ, 0.2, 5.0, 5.0),
        # How long a step takes is not known yet.
        (Doing.STEP, None, 120.0, 1800.0),
        (Doing.READ, None, 120.0, 1800.0),
        (Doing.FIRST_STEP, 0.2, 120.0, 1800.0),
        (Doing.FIRST_STEP, 0.2, 7200.0, 7200.0),
        (Doing.VALIDATE, 0.2, 120.0, 1800.0),
        (Doing.SAVE, 0.2, 120.0, 3600.0),
        (Doing.WRITE_MODEL, 0.2, 120.0, 3600.0),
        (Doing.START, None, 120.0, float("inf")),
    ],
)
def test_what_a_rank_is_at_may_take_so_long(
    doing: Doing, step_s: float | None, hang_s: float, allowed: float
) -> None:
    assert allowed_s(at(0, doing, step_s=step_s), hang_s) == allowed


def test_the_rank_that_the_others_wait_for_is_behind() -> None:
    signs = [at(0, Doing.STEP, 9), at(1, Doing.READ, 8), at(2, Doing.STEP, 9)]
    assert stalled(signs, {0: 29.0, 1: 31.0, 2: 29.0}, 30.0, 3) == []
    assert stalled(signs, {0: 31.0, 1: 32.0, 2: 31.0}, 30.0, 3) == [signs[1]]
    # One is through, or has not begun.
    assert stalled(signs, {0: 31.0, 1: 32.0, 2: 31.0}, 30.0, 4) == []
    assert stalled([], {}, 30.0, 0) == []


def test_a_collective_that_all_are_in_has_nobody_behind() -> None:
    signs = [at(0, Doing.STEP, 9), at(1, Doing.STEP, 9)]
    assert stalled(signs, {0: 31.0, 1: 31.0}, 30.0, 2) == signs


@pytest.mark.parametrize(
    "doing",
    [Doing.START, Doing.FIRST_STEP, Doing.VALIDATE, Doing.SAVE, Doing.WRITE_MODEL],
)
def test_what_takes_long_is_no_stall(doing: Doing) -> None:
    # The first rank hashes a checkpoint; the others wait, whatever they say they are at.
    for others in (doing, Doing.STEP):
        signs = [at(0, doing, 8), at(1, others, 9)]
        assert stalled(signs, {0: 1700.0, 1: 1700.0}, 30.0, 2) == []


def test_one_rank_that_moves_is_enough() -> None:
    signs = [at(0, Doing.STEP, 9), at(1, Doing.READ, 8)]
    assert stalled(signs, {0: 0.5, 1: 900.0}, 30.0, 2) == []


def test_causes_in_words() -> None:
    one, two = at(0, Doing.STEP, 9), at(1, Doing.READ, 8)
    assert why_stalled([two], {1: 131.2}, 2) == (
        "no rank has moved for 131 s: rank 1 (process 11 on host) is reading samples after step "
        "3, the others wait, and was ended"
    )
    assert why_stalled([one, at(1, Doing.STEP, 9)], {0: 131.2}, 2) == (
        "no rank has moved for 131 s: rank 0 (process 10 on host) and rank 1 (process 11 on host) "
        "are in a step after step 3, and were ended"
    )
    assert why_silent([two], {1: 31.0}) == (
        "rank 1 (process 11 on host) gave no sign of life for 31 s after step 3, and was ended"
    )
