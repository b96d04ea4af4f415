"""Killed at every point where a save touches the disk, or met by a full or damaged one: the run
goes on, and ends with the losses and the model of one that was left alone, bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylm.artifact import hash_file
from raylm.bucket import Bucket
from raylm.config.train import CheckpointConfig
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.metrics import METRICS, MetricsTail, read_metrics
from raylm.train.mirror import Mirror
from raylm.train.skips import Skip, write_skip
from tests.train.damage import damage
from tests.train.forks import EVERY, STEPS, Forks
from tests.train.recorder import SAVE
from tests.train.test_worker import dataset

pytestmark = pytest.mark.timeout(900)
BEFORE, AFTER = (SAVE - 1) * EVERY, SAVE * EVERY


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("forks") / "data", "chat")


Whole = tuple[dict[int, float], str, list[str]]


@pytest.fixture(scope="module")
def whole(
    forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Whole]:
    """Losses, model and the trace of a save of a run that is left alone, made once for each."""
    known: dict[str, Whole] = {}

    def of(**options: Any) -> Whole:
        if str(options) not in known:
            work = tmp_path_factory.mktemp("whole") / "work"
            outcome = forks.train(data, work, **options)
            assert (outcome.code, outcome.began) == (0, 0)
            known[str(options)] = (losses(work), model(work), outcome.trace)
        return known[str(options)]

    return of


def losses(work: Path) -> dict[int, float]:
    found = {x["step"]: x["loss"] for x in read_metrics(work / METRICS) if "loss" in x}
    assert list(found) == list(range(1, STEPS + 1))
    return found


def model(work: Path) -> str:
    return hash_file(work / "model" / "model.safetensors")


def notices(work: Path) -> list[str]:
    return [line["text"] for line in MetricsTail(work / "notices.jsonl").new()]


def place(trace: list[str], start: str) -> int:
    return next(n for n, event in enumerate(trace) if event.startswith(start))


def killed(
    forks: Forks, data: Path, work: Path, whole: Callable[..., Whole], at: int, **options: Any
) -> None:
    """Kill a training before event `at` of a save, go on, and compare."""
    expected_losses, expected_model, trace = whole(**options)
    assert forks.train(data, work, kill_at=at, **options).code == -9
    outcome = forks.train(data, work, **options)
    # From the moment when it has its name, the new one is what is gone on from.
    began = AFTER if at > trace.index(f"rename .draft-{AFTER:08d}") else BEFORE
    assert (outcome.code, outcome.began) == (0, began), trace[at]
    assert losses(work) == expected_losses, trace[at]
    assert model(work) == expected_model, trace[at]
    assert os.listdir(work / "checkpoints") == [f"step-{STEPS:08d}"], trace[at]
    shutil.rmtree(work)


def test_killed_with_a_shard_half_written(
    forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    at = place(whole()[2], f"half .draft-{AFTER:08d}/state/mp_rank_00")
    killed(forks, data, tmp_path / "work", whole, at)


@pytest.mark.faults
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_killed_at_every_boundary_of_a_save(
    forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path: Path, zero: int,
    precision: str,
) -> None:  # fmt: skip
    options = {"zero": zero, "precision": precision}
    trace = whole(**options)[2]
    assert len(trace) >= 20
    # All in the two that differ most; an offset of its own in each of the others.
    whole_list = (precision, zero) in (("fp32", 2), ("bf16", 3))
    places = range(len(trace)) if whole_list else range(zero, len(trace), 7)
    for at in places:
        killed(forks, data, tmp_path / f"work-{at}", whole, at, **options)


def test_all_is_on_the_disk_before_it_counts_and_counts_before_another_is_removed(
    whole: Callable[..., Whole], two: Path
) -> None:
    trace = whole()[2]
    draft = f".draft-{AFTER:08d}"
    named = trace.index(f"rename {draft}")
    written = {event.split()[1] for event in trace if event.startswith("half ")}
    files = complete_checkpoints(two / "checkpoints")[0].files
    assert written == {f"{draft}/{entry.path}" for entry in files if entry.path[-3:] != ".py"}
    manifest = place(trace, f"rename {draft}/.manifest.json")
    synced = {event.split()[1] for event in trace[:manifest] if event.startswith("fsync ")}
    assert written | {draft, f"{draft}/state"} <= synced
    assert f"fsync {draft}/.manifest.json" in [
        event.partition(".json")[0] + ".json" for event in trace[:manifest]
    ]
    assert trace[manifest + 1] == f"fsync {draft}"
    assert manifest < named
    assert trace[named + 1] == "fsync"  # the folder of checkpoints itself
    old = f"step-{BEFORE:08d}"
    assert trace[named + 2] == f"unlink {old}/manifest.json"
    assert not any(old in event for event in trace[: named + 2])


DAMAGES: dict[str, str] = {
    "truncated": "has {} of {} bytes",
    "flipped": "was altered",
    "missing": "is missing",
    "extra": "does not belong to it",
    "manifest": "its manifest was altered",
    "no manifest": "it has no manifest",
}


@pytest.fixture(scope="module")
def two(forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path_factory: Any) -> Path:
    """A run that was killed when it had two checkpoints."""
    work: Path = tmp_path_factory.mktemp("two") / "work"
    saved = len(whole(keep=2)[2]) - 1
    assert forks.train(data, work, keep=2, kill_at=saved).code == -9
    assert len(complete_checkpoints(work / "checkpoints")) == 2
    return work


@pytest.mark.parametrize(
    "how", [how if how == "flipped" else pytest.param(how, marks=pytest.mark.faults)
            for how in DAMAGES]
)  # fmt: skip
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    forks: Forks, data: Path, whole: Callable[..., Whole], two: Path, tmp_path: Path, how: str
) -> None:
    work = tmp_path / "work"
    shutil.copytree(two, work)
    damage(work / "checkpoints" / f"step-{AFTER:08d}", how)
    outcome = forks.train(data, work)
    assert (outcome.code, outcome.began) == (0, BEFORE)
    assert losses(work) == whole()[0]
    assert model(work) == whole()[1]
    first, second = notices(work)
    assert first.startswith(f"the checkpoint step-{AFTER:08d} is passed over: ")
    assert all(part in first for part in DAMAGES[how].split("{}"))
    assert second == f"going on from the checkpoint of step {BEFORE}"


@pytest.mark.faults
def test_with_no_sound_checkpoint_the_run_starts_anew_and_says_so(
    forks: Forks, data: Path, whole: Callable[..., Whole], two: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(two, work)
    for folder in (work / "checkpoints").iterdir():
        damage(folder, "flipped")
    outcome = forks.train(data, work)
    assert (outcome.code, outcome.began) == (0, 0)
    assert losses(work) == whole()[0]
    assert notices(work)[-1] == "no sound checkpoint is left: the run starts at its beginning"


@pytest.mark.faults
def test_without_the_record_of_skipped_windows_samples_would_be_seen_twice(
    forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_skip(work, Skip(1, 1, "the loss is nan", (), ()))
    assert forks.train(data, work, kill_at=len(whole()[2]) - 1).code == -9
    (found,) = complete_checkpoints(work / "checkpoints")
    assert found.progress.consumed_samples == 4 * (AFTER + 1)
    (work / "skipped.json").rename(work / "lost")
    outcome = forks.train(data, work)
    assert outcome.error is not None
    assert outcome.error[0] == "train-skips-lost"
    (work / "lost").rename(work / "skipped.json")
    assert forks.train(data, work).began == AFTER


def test_a_machine_with_an_empty_disk_goes_on_from_the_bucket(
    forks: Forks, data: Path, whole: Callable[..., Whole], two: Path, url: str, tmp_path: Path
) -> None:
    said: list[str] = []
    options: Any = CheckpointConfig(keep=2), lambda tick: said.append(tick.text)
    with pytest.raises(InterruptedError), Mirror(Bucket(url), "checkpoints/key", two, *options):
        raise InterruptedError
    assert said[-1].startswith(f"step-{AFTER:08d} uploaded to s3://models/team")
    work = tmp_path / "work"
    work.mkdir()
    Mirror(Bucket(url), "checkpoints/key", work, *options).fetch("c")
    assert said[-1] == f"step-{AFTER:08d} downloaded from s3://models/team"
    outcome = forks.train(data, work)
    assert (outcome.code, outcome.began) == (0, AFTER)
    assert losses(work) == whole()[0]
    assert model(work) == whole()[1]


def full(forks: Forks, data: Path, work: Path, whole: Callable[..., Whole], num_bytes: int) -> None:
    """Let the second save run out of space, see what is left, make room, and go on."""
    folder = work / "checkpoints"
    forks.mount(folder, num_bytes)
    outcome = forks.train(data, work)
    assert outcome.code == 0
    code, message = outcome.error or ("", "")
    assert (code, message.removesuffix(f"/.draft-{AFTER:08d}")) == (
        "disk-full", f"no space left on the disk of {folder}",
    )  # fmt: skip
    assert forks.read(folder) == [f"step-{BEFORE:08d}"]
    forks.mount(folder, 10 * num_bytes, again=True)
    outcome = forks.train(data, work)
    assert (outcome.code, outcome.began, outcome.error) == (0, BEFORE, None)
    assert losses(work) == whole()[0]
    assert model(work) == whole()[1]


@pytest.fixture(scope="module")
def checkpoint_bytes(two: Path) -> int:
    files = complete_checkpoints(two / "checkpoints")[0].files
    # A file system gives whole pages, to folders none.
    return sum(-(-entry.size_bytes // 4096) * 4096 for entry in files)


def test_a_full_disk_leaves_the_checkpoint_before_and_is_named(
    forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path: Path, checkpoint_bytes: int
) -> None:
    if not forks.can_mount():
        pytest.skip("a file system that fills up takes the right to mount one")
    full(forks, data, tmp_path / "work", whole, int(checkpoint_bytes * 1.5))


@pytest.mark.faults
def test_a_disk_that_is_full_at_any_point_of_a_save(
    forks: Forks, data: Path, whole: Callable[..., Whole], tmp_path: Path, checkpoint_bytes: int
) -> None:
    if not forks.can_mount():
        pytest.skip("a file system that fills up takes the right to mount one")
    parts = [1.05, 1.2, 1.35, 1.65, 1.8, 1.95]
    sizes = [int(checkpoint_bytes * part) for part in parts]
    # Room for all but the manifest, or for all but the last page of a shard.
    sizes += [2 * checkpoint_bytes + extra * 4096 for extra in (-3, -2, -1, 0, 1)]
    for number, size in enumerate(sizes):
        full(forks, data, tmp_path / f"work-{number}", whole, size)
