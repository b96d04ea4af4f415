import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from raylm.train.signs import BEAT_S, RANKS, Beat, Sign, Silence, begin_attempt, hung, read_signs


def sign(rank: int, beats: int = 1, pid: int = 10) -> Sign:
    return Sign(rank, pid + rank, 0.0, "host", "node", step=3, beats=beats)


def test_a_rank_beats_until_it_is_closed(tmp_path: Path) -> None:
    beat = Beat(tmp_path / RANKS / begin_attempt(tmp_path), sign(2, beats=0))
    beat.step(7)
    deadline = time.monotonic() + 10
    while not (found := read_signs(tmp_path)) or found[0].beats < 2:
        assert time.monotonic() < deadline
        time.sleep(BEAT_S / 20)
    assert (found[0].rank, found[0].step, found[0].pid) == (2, 7, 12)
    beat.close()
    assert read_signs(tmp_path) == []


def test_a_rank_ends_when_another_attempt_has_begun(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from raylm.train.signs import Beat, Sign\n"
        "beat = Beat(Path(sys.argv[1]), Sign(1, 2, 0.0, 'host', 'node', step=3)); time.sleep(60)"
    )
    folder = tmp_path / RANKS / begin_attempt(tmp_path)
    rank = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not read_signs(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(BEAT_S / 20)
    begin_attempt(tmp_path)
    _, said = rank.communicate(timeout=30)
    assert (rank.returncode, said) == (1, "rank 1 was given up: its attempt is over\n")
    assert read_signs(tmp_path) == []


def test_silence_is_counted_by_whoever_looks() -> None:
    silence = Silence()
    assert silence.look([sign(0), sign(1)], 100.0) == {0: 0.0, 1: 0.0}
    assert silence.look([sign(0, beats=2), sign(1)], 107.0) == {0: 0.0, 1: 7.0}
    # A new process that has beaten as often is somebody else.
    assert silence.look([sign(0, beats=2), sign(1, pid=50)], 109.0) == {0: 2.0, 1: 0.0}


def test_the_silent_ones_are_hung_the_longest_first() -> None:
    signs = [sign(0), sign(1), sign(2)]
    assert hung(signs, {0: 0.5, 1: 31.0, 2: 40.0}, 30.0) == [signs[2], signs[1]]
    assert hung(signs, {0: 0.5, 1: 3.0, 2: 2.0}, 30.0) == []


def test_a_rank_that_starts_may_be_silent_for_longer() -> None:
    starting = replace(sign(1), step=-1)
    signs = [sign(0), starting, sign(2)]
    assert hung(signs, {0: 0.5, 1: 200.0, 2: 0.5}, 30.0) == []
    assert hung(signs, {0: 0.5, 1: 301.0, 2: 0.5}, 30.0) == [starting]


def test_if_all_are_silent_it_was_the_machine() -> None:
    signs = [sign(0), sign(1)]
    assert hung(signs, {0: 90.0, 1: 90.0}, 30.0) == []
    assert hung(signs[:1], {0: 90.0}, 30.0) == signs[:1]
