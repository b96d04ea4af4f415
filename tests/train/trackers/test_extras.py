"""MLflow and trackio with their real local stores."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from raylm.progress import Tick
from raylm.train.trackers.children import Trackers
from tests.train.trackers.runs import Run

CONFIG = {"seed": 3, "data": {"seq_len": 64}, "model": {}, "train": {"zero": 2, "lora": None}}
NONE_OF = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_DIR", "TRACKIO_SPACE_ID")


def run_in(folder: Path) -> Run:
    """A run's folder with its record, and the train stage's in it."""
    record = {"id": "tiny-1234", "config": CONFIG}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    return Run(folder / "train-abc")


def twice(run: Run, name: str) -> list[Tick]:
    """Train to step 6, be killed, and go on from step 4 to step 9."""
    told: list[Tick] = []
    with pytest.raises(RuntimeError), Trackers((name,), run.work, told.append, end_s=60):
        run.steps(6)
        run.validate()
        raise RuntimeError("killed")
    run.resume(4)
    with Trackers((name,), run.work, told.append, end_s=60):
        run.steps(5)
    return told


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NONE_OF:
        monkeypatch.delenv(name, raising=False)


def test_mlflow_has_the_run_once_with_its_configuration_and_every_step(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = run_in(tmp_path / "tiny-1234")
    assert twice(run, "mlflow") == []
    client = MlflowClient(f"sqlite:///{run.work}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("raylm")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tiny-1234"
    assert found.info.status == "FINISHED"
    assert found.data.params["train.zero"] == "2"
    assert found.data.params["data.seq_len"] == "64"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, 10))
    assert {p.step: p.value for p in history}[9] == run.losses[9]
    assert found.data.metrics["held_out/loss"] == 5.0
    assert not (Path.cwd() / "mlruns").exists()


def test_a_tracking_server_that_never_answers_does_not_hold_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tick] = []
    run = run_in(tmp_path / "tiny-1234")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with Trackers(("mlflow", "tensorboard"), run.work, told.append, end_s=5):
            run.steps(3)
    (tick,) = told
    assert "mlflow is not told any more: it did not end within 5 s" in tick.text
    assert any((run.work / "tensorboard").iterdir())


def test_trackio_has_the_run_once_with_every_step(tmp_path: Path) -> None:
    run = run_in(tmp_path / "tiny-1234")
    assert twice(run, "trackio") == []
    (file,) = (run.work / "trackio").glob("*.db")
    with sqlite3.connect(file) as store:
        rows: list[Any] = store.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {"tiny-1234"}
    points = [(step, json.loads(text)) for _, step, text in rows]
    losses = sorted((s, m["train/loss"]) for s, m in points if "train/loss" in m)
    assert [step for step, _ in losses] == list(range(1, 10))
    # Steps 5 and 6 were done twice, and have their first losses.
    assert {s: x for s, x in losses if s not in (5, 6)} == {
        s: pytest.approx(x) for s, x in run.losses.items() if s not in (5, 6)
    }
    assert [step for step, m in points if "held_out/loss" in m] == [6]
