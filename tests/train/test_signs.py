import subprocess
import sys
import time
from pathlib import Path

from raylm.train.signs import BEAT_S, RANKS, Beat, Doing, Sign, begin_attempt, read_signs


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


def test_a_rank_says_what_it_is_at_and_how_long_its_steps_take(tmp_path: Path) -> None:
    beat = Beat(tmp_path, sign(0, beats=0))

    def now() -> tuple[str, int]:
        return beat._sign["doing"], beat._sign["moves"]

    assert now() == (Doing.START, 0)
    beat.step(0)
    assert now() == (Doing.FIRST_STEP, 1)
    with beat.doing(Doing.READ):
        assert now() == (Doing.READ, 2)
    assert now() == (Doing.FIRST_STEP, 3)
    for done in (1, 2, 3):
        assert beat._sign["step_s"] is None
        beat.step(done)
    assert now() == (Doing.STEP, 6)
    assert 0 <= beat._sign["step_s"] < 60
    with beat.doing(Doing.SAVE), beat.doing(Doing.START):
        pass
    beat.step(2)
    assert now()[0] == Doing.FIRST_STEP, "after going back it compiles anew"
    beat.close()


def test_what_a_rank_is_at_is_in_its_file(tmp_path: Path) -> None:
    beat = Beat(tmp_path / RANKS / begin_attempt(tmp_path), sign(2, beats=0))
    beat.step(7)
    with beat.doing(Doing.READ):
        beat._write()
        (found,) = read_signs(tmp_path)
    assert (found.doing, found.moves, found.step_s) == ("reading samples", 2, None)
    beat.close()
