from pathlib import Path

import pytest

from raylm.train.trackers.events import EventFile, event, record
from raylm.train.trackers.follow import follow, make_tracker
from raylm.train.trackers.mark import Mark
from raylm.train.trackers.scalars import scalars
from tests.train.trackers.runs import Run, events


def drain(work: Path) -> None:
    """One process of the tracker, from its start to its end."""
    follow(work, "tensorboard", lambda mark: make_tracker("tensorboard", work, mark), lambda: True)


def test_every_figure_is_there_once_and_unknown_ones_are_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.steps(5)
    run.validate()
    drain(tmp_path)
    found = events(tmp_path / "tensorboard")
    assert found.keys() == {"train/loss", "train/lr", "held_out/loss"}
    assert found["held_out/loss"] == {5: [5.0]}
    assert found["train/loss"] == {step: [pytest.approx(loss)] for step, loss in run.losses.items()}


def test_a_resumed_run_goes_on_without_doubled_points(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.steps(8)
    run.validate()
    drain(tmp_path)
    run.resume(5)
    drain(tmp_path)  # it looks before the first new step is there
    run.steps(4)
    drain(tmp_path)
    run.steps(1)
    drain(tmp_path)
    found = events(tmp_path / "tensorboard")
    assert {s: len(v) for s, v in found["train/loss"].items()} == dict.fromkeys(range(1, 11), 1)
    for step, (value,) in found["train/loss"].items():
        assert value == pytest.approx(run.losses[step]), "the later run's"


def test_a_run_that_goes_back_while_it_is_followed_hides_what_it_does_again(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    turns = iter([lambda: run.steps(6), lambda: (run.resume(4), run.steps(3)), lambda: None])

    def ends() -> bool | None:
        turn = next(turns, None)
        if turn is None:
            return True
        turn()
        return None

    follow(tmp_path, "tensorboard", lambda mark: make_tracker("tensorboard", tmp_path, mark), ends)
    found = events(tmp_path / "tensorboard")["train/loss"]
    assert found == {s: [pytest.approx(loss)] for s, loss in run.losses.items()}
    assert len(found) == 7


def test_what_was_written_but_not_marked_before_a_kill_is_not_doubled(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.steps(3)
    drain(tmp_path)
    mark = (tmp_path / "trackers/tensorboard.json").read_text()
    run.steps(2)
    drain(tmp_path)
    (tmp_path / "trackers/tensorboard.json").write_text(mark)
    drain(tmp_path)
    found = events(tmp_path / "tensorboard")["train/loss"]
    assert {step: len(values) for step, values in found.items()} == dict.fromkeys(range(1, 6), 1)


def test_tensorboard_itself_reads_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path)
    run.steps(8)
    drain(tmp_path)
    run.resume(5)
    run.steps(4)
    drain(tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    points = [(e.step, e.value) for e in found.Scalars("train/loss")]
    assert points == [(s, pytest.approx(run.losses[s])) for s in range(1, 10)]


def test_a_record_is_that_of_the_format() -> None:
    """As TensorFlow wrote it: CRC-32C, rotated and masked."""
    assert event(1.5, version=True).hex() == (
        "09000000000000f83f" "1000" "1a0d" + b"brain.Event:2".hex()
    )  # fmt: skip
    # The check value of CRC-32C for these nine digits is e3069283.
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert record(b"123456789")[-4:] == masked.to_bytes(4, "little")


def test_large_steps_and_figures_beyond_a_float_are_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "x", wall_time=1.0, purge_step=0)
    file.add({"a": 1e300, "b": float("nan"), "c": -2.5}, step=3_000_000_000, wall_time=2.0)
    file.close()
    found = {name: steps[3_000_000_000] for name, steps in events(tmp_path).items()}
    assert found["a"] == [float("inf")]
    assert found["c"] == [-2.5]
    assert found["b"][0] != found["b"][0]


def test_marks_survive_and_a_broken_one_begins_anew(tmp_path: Path) -> None:
    mark = Mark(time=3.5, last={"train/loss": 7, "held_out/loss": 5}, run="abc")
    mark.save(tmp_path / "mark.json")
    assert Mark.read(tmp_path / "mark.json") == mark
    assert mark.step == 7
    assert mark.is_known("held_out/loss", 5)
    assert not mark.is_known("held_out/loss", 6)
    mark.forget_from(6)
    assert mark.last == {"train/loss": 5, "held_out/loss": 5}
    (tmp_path / "mark.json").write_text('{"ti')
    assert Mark.read(tmp_path / "mark.json") == Mark()


def test_figures_that_are_unknown_are_left_out() -> None:
    line = {"step": 3, "time": 1.0, "loss": 2.0, "mfu": None, "event": "start", "workers": 2}
    assert scalars(line) == {"train/loss": 2.0}
