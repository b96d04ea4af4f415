from pathlib import Path

import pytest

from raylm.errors import TrainError
from raylm.train.checkpoint import Checkpointer, Progress, complete_checkpoints, newest_sound


def at(step: int, world_size: int = 1, config_hash: str = "c") -> Progress:
    return Progress(step, 100, 0, 1.0, config_hash, world_size)


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    saver = Checkpointer(folder, rank=0, keep=keep, barrier=lambda: None)
    for step in steps:
        saver.save(at(step), lambda where: (where / "weights").write_text("w") and None)


def newest(folder: Path, world_size: int = 1) -> int | None:
    found = newest_sound(folder, config_hash="c", world_size=world_size)
    return found.progress.step if found else None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep=2)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [3, 2]
    assert newest(tmp_path) == 3


def test_a_checkpoint_without_manifest_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    assert newest(tmp_path) == 1


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "step-00000002" / "state" / "weights"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("v" if damage == "altered" else "")
    assert newest(tmp_path) == 1


def test_a_kill_while_saving_keeps_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def killed(where: Path) -> None:
        (where / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpointer(tmp_path, rank=0, keep=2, barrier=lambda: None).save(at(2), killed)
    assert newest(tmp_path) == 1
    save(tmp_path, 2)
    assert newest(tmp_path) == 2


def test_another_config_is_not_resumed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert newest_sound(tmp_path, config_hash="other", world_size=1) is None


def test_another_number_of_workers_is_refused_with_the_remedy(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(TrainError) as caught:
        newest(tmp_path, world_size=2)
    assert caught.value.code == "resume-world-size"
    assert "train.workers=1" in str(caught.value.hint)


def test_an_empty_or_absent_folder_has_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
