"""A run's checkpoints in a bucket, against a real S3 server on loopback."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylm.bucket import Bucket
from raylm.config.train import CheckpointConfig
from raylm.progress import Tick
from raylm.stage import CHECKPOINTS
from raylm.train.checkpoint import Checkpointer, Progress, complete_checkpoints, newest_sound
from raylm.train.metrics import METRICS, MetricsLog
from raylm.train.mirror import Mirror
from raylm.train.skips import Skip, read_skips, write_skip

NAME = "checkpoints/key"


class Machine:
    """One machine's work folder, and what its driver says."""

    def __init__(self, url: str, work: Path, **options: Any) -> None:
        self.work, self.said = work, []  # type: tuple[Path, list[str]]
        work.mkdir(exist_ok=True)
        config = CheckpointConfig(**options)
        self.saver = Checkpointer(
            work / CHECKPOINTS, rank=0, keep=config.keep, keep_best=config.keep_best,
            barrier=lambda: None,
        )  # fmt: skip
        self.mirror = Mirror(Bucket(url), NAME, work, config, self.hear)

    def hear(self, tick: Tick) -> None:
        self.said.append(tick.text)

    def save(self, step: int, text: str = "weights", loss: float | None = None) -> None:
        log = MetricsLog(self.work / METRICS, from_step=step - 1)
        log.write(step=step, loss=float(step))
        log.close()

        def write(folder: Path) -> None:
            (folder / "shard").write_text(f"{text} {step}")
            (folder / "rng-0.npy").write_bytes(b"rng")

        self.saver.save(Progress(step, 100, 0, 1.0, "c", 1, held_out_loss=loss), write)

    def until(self, sign: str) -> None:
        wait(lambda: any(sign in text for text in self.said), self.said)

    def newest(self) -> int:
        found = newest_sound(self.work / CHECKPOINTS, config_hash="c")
        return found.progress.step if found else 0


def wait(holds: Callable[[], bool], said: list[str]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def there(s3: Any) -> list[str]:
    found = s3.list_objects_v2(Bucket="models").get("Contents", [])
    # Arrow keeps markers (keys that end in a slash) where folders would be.
    names = [entry["Key"] for entry in found if not entry["Key"].endswith("/")]
    return sorted(name.removeprefix(f"team/{NAME}/") for name in names)


def test_checkpoints_are_uploaded_pruned_and_taken_over_by_another_machine(
    url: str, s3: Any, tmp_path: Path
) -> None:
    first = Machine(url, tmp_path / "first", keep=1, keep_best=1)
    skip = Skip(0, 3, "the loss is nan", (1, 2), ({"id": "d", "source": "s"},))
    with first.mirror:
        for step, loss in ((5, 2.0), (10, 1.0), (15, 3.0), (20, 4.0)):
            if step == 15:
                write_skip(first.work, skip)
            first.save(step, loss=loss)
            first.until(f"step-{step:08d} uploaded")
        wait(lambda: len(there(s3)) == 9, first.said)
    names = ("books/metrics.jsonl", "manifest.json", "state/rng-0.npy", "state/shard")
    assert there(s3) == sorted(
        [f"step-{step:08d}/{name}" for step in (10, 20) for name in names]
        + ["step-00000020/books/skipped.json"]
    )
    second = Machine(url, tmp_path / "second", keep=1)
    second.mirror.fetch("c")
    assert second.newest() == 20
    (ours,), theirs = (
        complete_checkpoints(m.work / CHECKPOINTS) for m in (second, first)
    )  # fmt: skip
    assert (ours.progress, ours.files) == (theirs[0].progress, theirs[0].files)
    assert (ours.path / "state" / "shard").read_text() == "weights 20"
    assert read_skips(second.work) == [skip]
    lines = (second.work / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]
    # What came from there is not sent back, and what is here already is not fetched again.
    with second.mirror:
        time.sleep(1.2)
    assert second.said == ["step-00000020 downloaded from s3://models/team"]
    again = Machine(url, second.work)
    again.mirror.fetch("c")
    assert again.said == []
    again.mirror.drop()
    assert there(s3) == []


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "extra", "manifest"])
def test_a_damaged_copy_is_passed_over_and_told(
    url: str, s3: Any, tmp_path: Path, damage: str
) -> None:
    first = Machine(url, tmp_path / "first")
    with first.mirror:
        for step in (5, 10):
            first.save(step)
            first.until(f"step-{step:08d} uploaded")
    at = f"team/{NAME}/step-00000010"
    if damage == "missing":
        s3.delete_object(Bucket="models", Key=f"{at}/state/shard")
    else:
        name, body = {
            "altered": ("state/shard", b"weights 1O"),
            "truncated": ("state/shard", b"weigh"),
            "extra": ("manifest.json", None),
            "manifest": ("manifest.json", b"{}"),
        }[damage]
        if body is None:
            found = s3.get_object(Bucket="models", Key=f"{at}/{name}")["Body"].read()
            body = found.replace(b'"step": 10', b'"step": 11')
            assert body != found
        s3.put_object(Bucket="models", Key=f"{at}/{name}", Body=body)
    second = Machine(url, tmp_path / "second")
    second.mirror.fetch("c")
    assert second.newest() == 5
    assert second.said[0].startswith("step-00000010 in s3://models/team is passed over: ")
    assert {
        "altered": "state/shard was altered", "truncated": "has 5 of 10 bytes",
        "missing": "state/shard is missing", "extra": "its manifest was altered",
        "manifest": "its manifest cannot be read",
    }[damage] in second.said[0]  # fmt: skip
    assert list((second.work / CHECKPOINTS).glob(".draft-*")) == []
    # The next upload of the run that went on clears it away.
    with second.mirror:
        second.save(7)
        second.until("step-00000007 uploaded")
        wait(lambda: not any(name.startswith("step-00000010") for name in there(s3)), second.said)


def test_one_damaged_here_is_replaced_by_its_copy(url: str, s3: Any, tmp_path: Path) -> None:
    first = Machine(url, tmp_path / "first")
    with first.mirror:
        for step in (5, 10):
            first.save(step)
            first.until(f"step-{step:08d} uploaded")
    (first.work / CHECKPOINTS / "step-00000010" / "state" / "shard").write_text("w")
    assert first.newest() == 5
    again = Machine(url, first.work)
    again.mirror.fetch("c")
    assert again.newest() == 10


def test_a_failure_is_told_and_tried_again(
    url: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylm.train.mirror._RETRY_S", (0.0,))
    machine = Machine(url, tmp_path / "first")
    s3.delete_bucket(Bucket="models")
    with machine.mirror:
        machine.save(5)
        machine.until("step-00000005 is not uploaded: ")
        s3.create_bucket(Bucket="models")
        machine.until("step-00000005 uploaded")
    assert "step-00000005/manifest.json" in there(s3)


def test_a_slow_network_takes_the_newest_and_is_not_waited_for_beyond_the_limit(
    url: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(url, tmp_path / "first", keep=1, upload_wait_s=1.0)
    goes_on, put = threading.Event(), Bucket._put

    def slow(self: Bucket, source: Path, name: str, check: Callable[[], None]) -> str:
        while not goes_on.wait(0.01):
            check()
        return put(self, source, name, check)

    monkeypatch.setattr(Bucket, "_put", slow)
    with machine.mirror:
        machine.save(5)
        wait(lambda: (machine.work / CHECKPOINTS / ".uploading").exists(), machine.said)
        for step in (10, 15, 20):
            machine.save(step)
        goes_on.set()
        machine.until("step-00000020 uploaded")
    # That which was held while it was pruned here was uploaded whole, those between not at all.
    uploaded = [text.split()[0] for text in machine.said if " uploaded to " in text]
    assert uploaded == ["step-00000005", "step-00000020"]
    goes_on.clear()
    later = Machine(url, tmp_path / "later", upload_wait_s=1.0)
    with pytest.raises(ValueError, match="the run failed"), later.mirror:
        later.save(30)
        raise ValueError("the run failed")
    assert later.said == ["uploading the last checkpoint; again ends at once"]
    assert not any(name.startswith("step-00000030/manifest") for name in there(s3))
    assert not later.mirror._thread.is_alive()
    goes_on.set()
    with pytest.raises(ValueError, match="the run failed"), Machine(url, later.work).mirror:
        raise ValueError("the run failed")
    assert "step-00000030/manifest.json" in there(s3)


def test_a_run_that_is_through_does_not_wait(
    url: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylm.train.mirror._LOOK_S", 30.0)
    machine = Machine(url, tmp_path / "first")
    with machine.mirror:
        machine.save(5)
    assert there(s3) == []
    assert machine.said == []
    shutil.rmtree(machine.work)
