"""Killed anywhere, a run goes on: the same losses bit for bit, no process left, nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from raylm.artifact import MANIFEST
from raylm.stage import CHECKPOINTS
from raylm.store import Store
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from tests.product.processes import end, no_orphans, start, wait_for
from tests.train.trackers.runs import events

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

LONGER = (
    "--set", "train.steps=40", "--set", "train.checkpoint.every_steps=5",
    "--set", "train.validate_every=10",
)  # fmt: skip


def train(store: Path, config: Path) -> subprocess.Popen[str]:
    return start("run", "-c", str(config), *LONGER, "--until", "train", "-o", "json", store=store)


def losses(store: Path) -> list[tuple[int, float]]:
    (path,) = store.glob(f"runs/*/train-*/{METRICS}")
    return [(line["step"], line["loss"]) for line in read_metrics(path) if "loss" in line]


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return {stage["stage"]: stage["state"] for stage in json.loads(out)["stages"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, config_file: Path) -> Path:
    store = tmp_path_factory.mktemp("undisturbed")
    assert finish(train(store, config_file)) == {"data": "done", "train": "done"}
    return store


def test_after_kill_9_the_losses_and_the_model_are_the_same_bit_for_bit(
    undisturbed: Path, config_file: Path, tmp_path: Path
) -> None:
    process = train(tmp_path, config_file)
    wait_for(
        lambda: any(tmp_path.glob(f"runs/*/train-*/checkpoints/step-*/{MANIFEST}")), process, 300
    )
    end(process, signal.SIGKILL)
    assert len(losses(tmp_path)) < 40, "it was over before it was killed"
    no_orphans(tmp_path)
    assert Store(tmp_path).list("model") == []
    assert finish(train(tmp_path, config_file)) == {"data": "skipped", "train": "done"}
    assert losses(tmp_path) == losses(undisturbed)
    (folder,) = tmp_path.glob("runs/*/train-*/tensorboard")
    shown = {step: len(values) for step, values in events(folder)["train/loss"].items()}
    assert shown == dict.fromkeys(range(1, 41), 1)
    (ours,), (theirs,) = Store(tmp_path).list("model"), Store(undisturbed).list("model")
    assert ours.digest == theirs.digest


def test_done_again_every_stage_is_skipped_without_ray(
    undisturbed: Path, config_file: Path
) -> None:
    process = train(undisturbed, config_file)
    assert finish(process) == {"data": "skipped", "train": "skipped"}


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="sigterm"),
        # The same handler takes both: once is enough for every day.
        pytest.param(signal.SIGINT, 130, id="ctrl-c", marks=pytest.mark.faults),
    ],
)
def test_a_signal_during_training_ends_everything_and_loses_nothing(
    config_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = train(tmp_path, config_file)
    wait_for(
        lambda: any(tmp_path.glob(f"runs/*/train-*/checkpoints/step-*/{MANIFEST}")), process, 300
    )
    err = end(process, number)
    assert process.returncode == code, err
    assert "Traceback" not in err
    no_orphans(tmp_path)
    assert list((tmp_path / "drafts").iterdir()) == []
    (record,) = tmp_path.glob("runs/*/run.json")
    assert json.loads(record.read_text())["state"] == "interrupted"
    assert [a.kind for a in Store(tmp_path).list()] == ["dataset"]
    (work,) = tmp_path.glob("runs/*/train-*")
    logged = [line["step"] for line in read_metrics(work / METRICS) if "loss" in line]
    # The last checkpoint is of the last step: not one is done again.
    assert complete_checkpoints(work / CHECKPOINTS)[0].progress.step == logged[-1]


def ctrl_c_at(sign: str, config: Path, store: Path) -> None:
    """Interrupt a run when its progress shows `sign`."""
    process = start("run", "-c", str(config), *LONGER, store=store)
    assert process.stderr is not None
    for line in process.stderr:
        if sign in line:
            break
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "Traceback" not in err
    no_orphans(store)
    assert list((store / "drafts").iterdir()) == []


@pytest.mark.parametrize("sign", ["starting", "data:"])
def test_ctrl_c_while_ray_starts_or_data_is_made_leaves_nothing(
    config_file: Path, tmp_path: Path, sign: str
) -> None:
    ctrl_c_at(sign, config_file, tmp_path)
    assert Store(tmp_path).list() == []


@pytest.mark.parametrize("sign", ["evaluate:", pytest.param("compress:", marks=pytest.mark.faults)])
def test_ctrl_c_in_a_later_stage_keeps_the_earlier_ones(
    undisturbed: Path, config_file: Path, sign: str
) -> None:
    ctrl_c_at(sign, config_file, undisturbed)
    kinds = [artifact.kind for artifact in Store(undisturbed).list()]
    assert kinds[:2] == ["dataset", "model"]
    assert kinds.count("model") == 1


def test_two_runs_at_once_share_the_work(config_file: Path, tmp_path: Path) -> None:
    both = [
        start("run", "-c", str(config_file), "--until", "data", "-o", "json", store=tmp_path)
        for _ in range(2)
    ]
    states = sorted(finish(process)["data"] for process in both)
    assert states == ["done", "skipped"]
    assert len(Store(tmp_path).list("dataset")) == 1
