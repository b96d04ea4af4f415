"""The runner alone: which stages work, are skipped, are found; with stages of a few lines."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raylm.pipeline as pipeline
from raylm.artifact import Artifact
from raylm.config import Loaded, RunConfig, load_config
from raylm.errors import ConfigError, RaylmError
from raylm.stage import Context
from raylm.stages import STAGES as REAL_STAGES
from raylm.stages import Found, Stage
from raylm.store import Store

calls: list[str] = []


def made(name: str) -> Stage:
    def work(config: RunConfig, found: Found, context: Context) -> Artifact:
        calls.append(name)
        context.work.mkdir(parents=True, exist_ok=True)
        if (context.work / "fail").exists():
            raise RaylmError("told to fail", code="told")
        with context.store.draft("report", name) as draft:
            parents = tuple(found[need] for need in needs)
            text = f"{name} {[p.digest for p in parents]} {config.seed} {config.train.steps}"
            (draft.path / "x").write_text(text)
            return draft.commit(parents=parents, metrics={"from": name})

    needs = {"data": (), "train": ("data",), "evaluate": ("train", "data")}[name]
    keys = {
        "data": lambda c: {"seed": c.seed},
        "train": lambda c: {"steps": c.train.steps},
        "evaluate": lambda c: {},
    }

    def alone(config: RunConfig) -> bool:
        return name == "train" and config.train.is_alone

    return Stage(name, needs, keys[name], work, lambda: 1, alone=alone)


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    table = tuple(made(name) for name in ("data", "train", "evaluate"))
    monkeypatch.setattr(pipeline, "STAGES", table)
    monkeypatch.setattr("raylm.stages.STAGES", table)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@contextmanager
def no_cluster() -> Iterator[None]:
    calls.append("cluster")
    yield


def run(store: Store, *overrides: str, **options: object) -> dict[str, str]:
    loaded: Loaded = load_config(None, overrides)
    done = pipeline.run(loaded, connect=no_cluster, store=store, **options)  # type: ignore[arg-type]
    return {stage.stage: stage.state for stage in done.stages}


def test_stages_run_once_and_are_skipped_without_a_cluster(store: Store) -> None:
    assert run(store) == {"data": "done", "train": "done", "evaluate": "done"}
    assert calls == ["cluster", "data", "train", "evaluate"]
    calls.clear()
    assert set(run(store).values()) == {"skipped"}
    assert calls == []


def test_a_training_without_workers_starts_no_cluster(store: Store) -> None:
    run(store, until="data")
    calls.clear()
    assert run(store, "train.workers=0", until="train") == {"data": "skipped", "train": "done"}
    assert calls == ["train"]
    calls.clear()
    run(store, "train.workers=0")
    assert calls == ["cluster", "evaluate"]


def test_only_what_depends_on_a_change_is_done_again(store: Store) -> None:
    run(store)
    calls.clear()
    states = run(store, "train.steps=7")
    assert states == {"data": "skipped", "train": "done", "evaluate": "done"}


def test_until_and_from(store: Store) -> None:
    assert run(store, until="data") == {"data": "done"}
    calls.clear()
    assert run(store, start="train", until="train") == {"data": "skipped", "train": "done"}
    with pytest.raises(ConfigError) as caught:
        run(store, "seed=5", start="train")
    assert caught.value.code == "stage-missing"


def test_force_does_a_finished_stage_again(store: Store) -> None:
    run(store)
    calls.clear()
    states = run(store, force=["train"])
    assert states["train"] == "done"
    assert states["evaluate"] == "skipped"  # the same model came out


def test_a_dry_run_changes_nothing(store: Store) -> None:
    states = run(store, dry_run=True)
    assert states == {"data": "planned", "train": "planned", "evaluate": "planned"}
    assert calls == []
    assert store.list() == []
    assert not list((store.root / "runs").glob("*/run.json"))


def test_a_failed_stage_keeps_what_was_finished_and_is_recorded(store: Store) -> None:
    loaded = load_config()
    planned = pipeline.run(loaded, connect=no_cluster, store=store, until="data")
    key = pipeline._key(pipeline.STAGES[1], loaded, {"data": store.list()[0]})
    work = planned.path / f"train-{key[:12]}"
    work.mkdir()
    (work / "fail").touch()
    with pytest.raises(RaylmError, match="told to fail"):
        run(store)
    record = json.loads((planned.path / "run.json").read_text())
    assert record["state"] == "failed"
    assert record["error"] == "told to fail"
    assert [stage["stage"] for stage in record["stages"]] == ["data"]
    (work / "fail").unlink()
    assert run(store) == {"data": "skipped", "train": "done", "evaluate": "done"}


def test_an_unknown_stage_offers_the_nearest(store: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        run(store, until="tran")
    assert caught.value.hint == "did you mean 'train'?"


@pytest.mark.parametrize("preset", ["t5-1m", "bert-1m"])
def test_what_cannot_be_compressed_is_refused_before_anything_runs(
    store: Store, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STAGES", REAL_STAGES)
    with pytest.raises(ConfigError) as caught:
        run(store, f"model.preset={preset}")
    assert caught.value.code == "compress-architecture"
    assert list((store.root / "runs").iterdir()) == []


def test_the_report_shows_the_stages(store: Store) -> None:
    done = pipeline.run(load_config(), connect=no_cluster, store=store)
    assert done.report is not None
    assert "evaluate" in done.report.read_text()


def test_copies_of_checkpoints_go_when_the_result_is_there(
    url: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def work(config: RunConfig, found: Found, context: Context) -> Artifact:
        keys.append(context.key)
        bucket = context.store.bucket
        assert bucket is not None
        for step in ("step-1", "step-2"):
            bucket.push_folder(f"checkpoints/{context.key}/{step}", tmp_path, (), "{}")
        if len(keys) == 1:
            raise RaylmError("told to fail", code="told")
        with context.store.draft("report", "data") as draft:
            (draft.path / "x").write_text("x")
            return draft.commit()

    stage = Stage("data", (), lambda c: {"seed": c.seed}, work, lambda: 1)
    monkeypatch.setattr(pipeline, "STAGES", (stage,))
    store = Store(url)
    assert store.bucket is not None
    with pytest.raises(RaylmError, match="told to fail"):
        run(store)
    assert store.bucket.manifests(f"checkpoints/{keys[0]}") == {"step-1": "{}", "step-2": "{}"}
    assert run(store) == {"data": "done"}
    assert keys == [keys[0]] * 2
    assert store.bucket.manifests("checkpoints") == {}
