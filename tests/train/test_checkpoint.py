import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from raylm.errors import HostError
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


def told(folder: Path) -> list[str]:
    said: list[str] = []
    newest_sound(folder, config_hash="c", tell=said.append)
    return said


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep=2)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [3, 2]
    assert newest(tmp_path) == 3


def test_a_checkpoint_without_manifest_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    assert newest(tmp_path) == 1


def test_every_damage_is_told_with_its_place(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 10), keep=9)
    state = [tmp_path / f"step-{step:08d}" / "state" for step in range(10)]
    (state[9] / "weights").write_text("v")
    (state[8] / "weights").write_text("")
    (state[7] / "weights").unlink()
    (state[6] / "more").write_text("w")
    (state[5] / "weights").rename(tmp_path / "elsewhere")
    (state[5] / "weights").symlink_to(tmp_path / "elsewhere")
    manifests = [folder.parent / "manifest.json" for folder in state]
    manifests[4].write_text(manifests[4].read_text().replace('"horizon": 100', '"horizon": 101'))
    manifests[3].write_bytes(b"\xff\xfe")
    manifests[2].unlink()
    assert told(tmp_path) == [
        "the checkpoint step-00000009 is passed over: state/weights was altered",
        "the checkpoint step-00000008 is passed over: state/weights has 0 of 1 bytes",
        "the checkpoint step-00000007 is passed over: state/weights is missing",
        "the checkpoint step-00000006 is passed over: state/more does not belong to it",
        f"the checkpoint step-00000005 is passed over: {state[5] / 'weights'} is not a plain file",
        "the checkpoint step-00000004 is passed over: its manifest was altered",
        "the checkpoint step-00000003 is passed over: its manifest cannot be read "
        "('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
        "the checkpoint step-00000002 is passed over: it has no manifest",
        "going on from the checkpoint of step 1",
    ]
    assert newest(tmp_path) == 1


def test_a_sound_one_is_taken_without_a_word_and_none_at_all_too(tmp_path: Path) -> None:
    save(tmp_path / "some", 1)
    assert (told(tmp_path / "some"), newest(tmp_path / "some")) == ([], 1)
    assert (told(tmp_path / "none"), newest(tmp_path / "none")) == ([], None)


def test_under_another_name_or_configuration_it_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000002")
    assert newest(tmp_path) is None
    assert "it is of step 1, which its name denies" in told(tmp_path)[0]
    Checkpointer(tmp_path, rank=0, keep=2, barrier=lambda: None).save(
        at(3, config_hash="other"), lambda where: (where / "weights").write_text("w") and None
    )
    assert "step-00000003 is passed over: it is of another configuration" in told(tmp_path)[0]


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd"])
def test_a_manifest_that_points_outside_is_not_believed(tmp_path: Path, path: str) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"][0]["path"] = path
    del values["digest"]
    manifest.write_text(json.dumps(values))
    assert "its manifest was altered" in told(tmp_path)[0]


def test_manifests_of_before_there_was_a_digest_are_read(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["digest"], values["progress"]["consumed_samples"]
    manifest.write_text(json.dumps(values))
    assert newest(tmp_path) == 1
    assert complete_checkpoints(tmp_path)[0].progress.consumed_samples is None


def test_what_was_passed_over_does_not_push_out_what_the_run_went_on_from(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep=3)
    (tmp_path / "step-00000003" / "state" / "weights").write_text("v")
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    assert newest(tmp_path) == 2
    saver = Checkpointer(tmp_path, rank=0, keep=1, barrier=lambda: None)
    (tmp_path / ".draft-00000007" / "state").mkdir(parents=True)
    saver.save(replace(at(2), elapsed_s=2.0), lambda where: (where / "w").write_text("w") and None)
    assert os.listdir(tmp_path) == ["step-00000002"]
    assert complete_checkpoints(tmp_path)[0].progress.elapsed_s == 2.0


def test_a_kill_while_saving_keeps_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def killed(where: Path) -> None:
        (where / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpointer(tmp_path, rank=0, keep=2, barrier=lambda: None).save(at(2), killed)
    assert newest(tmp_path) == 1
    assert os.listdir(tmp_path) == ["step-00000001"]
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


def test_a_held_out_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, rank=0, keep=1, keep_best=1, barrier=lambda: None)
    for step, loss in enumerate((math.nan, 1.0, math.nan, 2.0, -math.inf, 3.0), start=1):
        progress = replace(at(step), held_out_loss=loss)
        saver.save(progress, lambda where: (where / "weights").write_text("w") and None)
    assert [c.progress.step for c in complete_checkpoints(tmp_path)] == [6, 2]


def test_without_every_ranks_share_there_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    saver = Checkpointer(tmp_path, rank=0, keep=1, barrier=lambda: None)
    required = ["rng-0.npy", "rng-1.npy", "share-1.pt"]

    def write(where: Path) -> None:
        (where / "rng-0.npy").write_text("0")

    with pytest.raises(HostError) as caught:
        saver.save(at(2), write, required=required)
    assert caught.value.code == "store-not-shared"
    assert "does not see rng-1.npy, share-1.pt in" in caught.value.message
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert newest(tmp_path) == 1


def test_what_progress_holds_comes_back(tmp_path: Path) -> None:
    progress = replace(
        at(7, world_size=3), losses=(1.5, 2.5), held_out_loss=0.25, consumed_samples=72
    )
    saver = Checkpointer(tmp_path, rank=0, keep=1, barrier=lambda: None)
    saver.save(progress, lambda where: (where / "weights").write_text("w") and None)
    assert complete_checkpoints(tmp_path)[0].progress == progress
