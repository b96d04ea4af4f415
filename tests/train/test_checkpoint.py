from dataclasses import replace
from pathlib import Path

import pytest

from raylm.train.checkpoint import Checkpointer, Progress, complete_checkpoints, newest_sound


def at(step: int, world_size: int = 1, config_hash: str = "c") -> Progress:
    return Progress(step, 100, 0, 1.0, config_hash, world_size)


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    saver = Checkpointer(folder, rank=0, keep=keep, barrier=lambda: None)
    for step in steps:
        saver.save(at(step), lambda where: (where / "weights").write_text("w") and None)


def newest(folder: Path) -> int | None:
    found = newest_sound(folder, config_hash="c")
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
    assert newest_sound(tmp_path, config_hash="other") is None


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, rank=0, keep=1, keep_best=2, barrier=lambda: None)
    for step, loss in enumerate((3.0, 1.0, 4.0, None, 2.0, 5.0), start=1):
        progress = replace(at(step), held_out_loss=loss)
        saver.save(progress, lambda where: (where / "weights").write_text("w") and None)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [6, 5, 2]


def test_what_progress_holds_comes_back(tmp_path: Path) -> None:
    progress = replace(at(7, world_size=3), losses=(1.5, 2.5), held_out_loss=0.25)
    saver = Checkpointer(tmp_path, rank=0, keep=1, barrier=lambda: None)
    saver.save(progress, lambda where: (where / "weights").write_text("w") and None)
    assert complete_checkpoints(tmp_path)[0].progress == progress
