"""DeepSpeed on Ray Train: the same losses whatever is sharded, accumulated or spread."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raylm.config import Loaded
from raylm.record import RunResult
from raylm.store import Store
from raylm.train.metrics import METRICS, read_metrics
from tests.integration.matrix import CASES
from tests.train.trackers.runs import events

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def losses(two_workers: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((two_workers / "losses.json").read_text())
    written = [two_workers / name / "model" / "config.json" for name in CASES]
    found["folders"] = [float(file.exists()) for file in written]
    return found


@pytest.mark.parametrize("stage", [0, 3])
def test_every_zero_stage_gives_the_losses_of_stage_2(
    losses: dict[str, list[float]], stage: int
) -> None:
    np.testing.assert_allclose(losses[f"zero{stage}"], losses["zero2"], rtol=2e-5)


def test_a_batch_that_does_not_come_out_even_trains_the_same(
    losses: dict[str, list[float]],
) -> None:
    np.testing.assert_allclose(losses["uneven"], losses["zero2"], rtol=2e-5)


def test_activation_checkpointing_does_not_change_the_losses(
    losses: dict[str, list[float]],
) -> None:
    np.testing.assert_allclose(losses["checkpointed activations"], losses["zero2"], rtol=2e-5)


def test_bf16_stays_close_to_fp32(losses: dict[str, list[float]]) -> None:
    np.testing.assert_allclose(losses["bf16"], losses["zero2"], rtol=0.03)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_muon_gives_the_same_losses_whatever_is_sharded(
    losses: dict[str, list[float]], stage: int
) -> None:
    np.testing.assert_allclose(losses[f"muon{stage}"], losses["muon2"], rtol=2e-5)
    assert losses["muon2"][-1] < losses["muon2"][0] - 0.5


def test_the_model_learns(losses: dict[str, list[float]]) -> None:
    assert losses["zero2"][-1] < losses["zero2"][0] - 0.5


def test_every_case_writes_a_model_folder(losses: dict[str, list[float]]) -> None:
    assert losses["folders"] == [1.0] * len(CASES)


def test_the_run_kept_its_metrics_and_dropped_its_checkpoints(
    finished: RunResult, loaded: Loaded
) -> None:
    (work,) = finished.path.glob("train-*")
    lines = [line for line in read_metrics(work / METRICS) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["tokens"] == 12 * 8 * 64
    assert lines[0]["loss"] == pytest.approx(np.log(400), abs=0.3)
    assert not (work / "checkpoints").exists()
    for line in lines:
        assert 0 < line["mfu"] < 1
        assert line["max_memory_bytes"] >= line["memory_bytes"] > 10**8
        assert line["data_wait_s"] > 0
    assert lines[-1]["left_s"] == 0
    shown = events(work / "tensorboard")
    assert sorted(shown["train/loss"]) == list(range(1, 13))
    assert list(shown["held_out/loss"]) == [12]
    assert finished.report is not None
    assert finished.report.read_text().count("<svg") == 7


def test_a_corpus_smaller_than_a_batch_is_refused_before_workers_start(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from raylm.errors import DataError
    from raylm.stage import Context
    from raylm.train.train import train

    config = loaded.config.train.model_copy(update={"global_batch": 100_000})
    context = Context(store, "x", 0, tmp_path, tmp_path / "work")
    with pytest.raises(DataError) as caught:
        train(loaded.config.model, config, store.list("dataset")[0], context)
    assert caught.value.code == "corpus-too-small"


def test_more_workers_than_the_cluster_holds_fail_at_once(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from raylm.errors import HostError
    from raylm.stage import Context
    from raylm.train.train import train

    config = loaded.config.train.model_copy(update={"workers": 64, "global_batch": 128})
    context = Context(store, "x", 0, tmp_path, tmp_path / "work")
    with pytest.raises(HostError) as caught:
        train(loaded.config.model, config, store.list("dataset")[0], context)
    assert caught.value.code == "cluster-too-small"
    assert "64 CPUs" in caught.value.message


def test_a_loss_that_stays_no_number_ends_the_run_with_its_step_and_its_documents(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from raylm.errors import TrainError
    from raylm.stage import Context
    from raylm.train.train import train

    config = loaded.config.train
    wild = config.optimizer.model_copy(update={"lr": 1.0, "clip_norm": 0.0})
    wild = wild.model_copy(update={"lr": 1e30})  # beyond what a config file may say
    guard = config.guard.model_copy(update={"max_rollbacks": 1})
    config = config.model_copy(update={"optimizer": wild, "guard": guard})
    context = Context(store, "x", 0, tmp_path, tmp_path / "work")
    with pytest.raises(TrainError) as caught:
        train(loaded.config.model, config, store.list("dataset")[0], context)
    assert caught.value.code == "train-diverged"
    assert "after 1 skipped window of samples; its samples are of " in caught.value.message
    assert ".py" in caught.value.message
    assert [a.manifest.name for a in store.list("model") if a.manifest.name == "x"] == []


@pytest.mark.faults
def test_without_workers_the_losses_are_those_of_one_worker_bit_for_bit(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from raylm.stage import Context
    from raylm.train.train import train

    found = []
    for workers in (0, 1):
        config = loaded.config.train.model_copy(update={"workers": workers})
        work = tmp_path / f"work{workers}"
        context = Context(store, f"alone{workers}", 0, tmp_path, work)
        made = train(loaded.config.model, config, store.list("dataset")[0], context)
        lines = [line for line in read_metrics(work / METRICS) if "loss" in line]
        found.append(([line["loss"] for line in lines], made.manifest.files))
    assert found[0][0] == found[1][0]
    assert len(found[0][0]) == 12
    weights = [{f.path: f.sha256 for f in files}["model.safetensors"] for _, files in found]
    assert weights[0] == weights[1]


def test_the_record_has_what_was_predicted_beside_what_was_measured(
    finished: RunResult, loaded: Loaded
) -> None:
    trained = finished.of("train")
    assert trained is not None
    predicted, metrics = trained.metrics["plan"], trained.metrics
    # A model this small is all process: what is checked is the constant of a Ray worker.
    assert metrics["peak_memory_bytes"] == pytest.approx(predicted["memory_bytes"], rel=0.2)
    assert sum(predicted["memory"].values()) == predicted["memory_bytes"]
    assert predicted["steps"] == 12
    (work,) = finished.path.glob("train-*")
    last = list(read_metrics(work / METRICS))[-1]
    assert last["peak_memory_bytes"] == metrics["peak_memory_bytes"]


def test_a_training_that_does_not_fit_is_refused_before_workers_start(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from raylm.errors import HostError
    from raylm.stage import Context
    from raylm.train.train import train

    model = loaded.config.model.model_copy(
        update={"num_layers": 10_000, "hidden_size": 4096, "intermediate_size": 16384}
    )
    context = Context(store, "x", 0, tmp_path, tmp_path / "work")
    with pytest.raises(HostError) as caught:
        train(model, loaded.config.train, store.list("dataset")[0], context)
    assert caught.value.code == "plan-does-not-fit"
    assert not (tmp_path / "work").exists()


def test_a_probe_measures_three_steps_and_keeps_nothing(
    finished: RunResult, store: Store, loaded: Loaded
) -> None:
    from raylm.plan import make_plan

    before = {path for path in store.root.rglob("*") if "locks" not in path.parts}
    plan = make_plan(loaded, store, probing=True)
    assert plan.probe is not None
    assert plan.probe.tokens_per_s > 0
    assert plan.mfu is not None
    assert 0 < plan.mfu < 1
    assert plan.probe.peak_memory_bytes == pytest.approx(plan.memory.total_bytes, rel=0.2)
    assert plan.pace.steps == 12
    assert plan.unknown == ()
    assert plan.disk.dataset_bytes is not None
    after = {path for path in store.root.rglob("*") if "locks" not in path.parts}
    assert {path.name for path in after - before} <= {"peaks.json"}
