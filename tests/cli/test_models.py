import json

import pytest

from raylm.artifact import Artifact
from raylm.store import Store


def test_ls_and_show(raylm, models: tuple[Artifact, Artifact]) -> None:
    parent, child = models
    rows = raylm("models", "ls", "-o", "json").json
    assert [(r["ref"], r["size_bytes"]) for r in rows] == [(parent.ref, 3000), (child.ref, 800)]
    shown = raylm("models", "show", "tiny-int8", "-o", "json").json
    assert shown["lineage"] == [child.ref, parent.ref]
    assert shown["config"] == {"method": "int8"}
    text = raylm("models", "show", parent.digest[:8]).out
    assert "metric    perplexity = 12.5" in text


def test_an_empty_store_is_an_empty_list(raylm) -> None:
    done = raylm("models", "ls", "-o", "json")
    assert done.json == []
    assert "raylm run" in done.err


def test_an_unknown_name_gets_the_nearest(raylm, models: tuple[Artifact, Artifact]) -> None:
    done = raylm("models", "show", "tinny")
    assert done.code == 1
    assert "did you mean 'tiny'?" in done.err


def test_verify_finds_the_altered_file(
    raylm, store: Store, models: tuple[Artifact, Artifact]
) -> None:
    assert [r["ok"] for r in raylm("models", "verify", "-o", "json").json] == [True, True]
    (models[1].path / "weights").write_bytes(b"x" * 800)
    done = raylm("models", "verify")
    assert done.code == 1
    assert f"ALTERED  {models[1].ref}" in done.out
    assert f"ok       {models[0].ref}" in done.out
    assert "weights was altered" in done.err


def test_rm_asks_first_and_keeps_what_others_need(
    raylm, store: Store, models: tuple[Artifact, Artifact]
) -> None:
    _, child = models
    unasked = raylm("models", "rm", "tiny-int8")
    assert unasked.code == 2
    assert child.path.exists()
    needed = raylm("models", "rm", "tiny", "--yes")
    assert needed.code == 1
    assert child.ref in needed.err
    assert raylm("models", "rm", "tiny-int8", "tiny", "--yes").code == 0
    assert store.list() == []


def test_rm_removes_an_altered_artifact(raylm, models: tuple[Artifact, Artifact]) -> None:
    _, child = models
    (child.path / "weights").write_bytes(b"")
    assert raylm("models", "verify", child.ref).code == 1
    assert raylm("models", "rm", child.ref, "--yes").code == 0
    assert not child.path.exists()


@pytest.fixture
def run_id(store: Store) -> str:
    folder = store.root / "runs" / "demo-12345678"
    (folder / "train-abc").mkdir(parents=True)
    stages = [{"stage": "data", "state": "done", "ref": "dataset/demo-1", "seconds": 65.0}]
    record = {"id": folder.name, "name": "demo", "state": "failed", "error": "no disk",
              "started": "2026-11-24T00:00:00+00:00", "config": {}, "stages": stages}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "train-abc" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    return folder.name


def test_runs(raylm, run_id: str) -> None:
    (row,) = raylm("runs", "ls", "-o", "json").json
    assert (row["id"], row["state"], row["stages"]) == (run_id, "failed", {"data": "done"})
    shown = raylm("runs", "show", "demo", "-o", "json").json
    assert shown["last_metrics"] == {"train-abc/metrics.jsonl": {"step": 2}}
    text = raylm("runs", "show", run_id).out
    assert "failed: no disk" in text
    assert "1 min 05 s" in text


def test_a_run_shows_what_was_predicted_beside_what_was_measured(
    raylm, store: Store, run_id: str
) -> None:
    file = store.root / "runs" / run_id / "run.json"
    record = json.loads(file.read_text())
    plan = {"memory_bytes": 2**30, "tokens_per_s": None, "train_s": 60.0}
    metrics = {"plan": plan, "peak_memory_bytes": 3 * 2**29, "tokens_per_s": 1234.4, "train_s": 90}
    record["stages"].append({"stage": "train", "state": "done", "metrics": metrics})
    file.write_text(json.dumps(record))
    lines = [line.split("  ") for line in raylm("runs", "show", run_id).out.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell] for line in lines}
    assert rows["memory of a worker"] == ["1.0 GiB", "1.5 GiB"]
    assert rows["tokens/s"] == ["not known", "1,234"]
    assert rows["training steps, time"] == ["1 min 00 s", "1 min 30 s"]


def test_an_unknown_run_gets_the_nearest(raylm, run_id: str) -> None:
    done = raylm("runs", "show", "demo-12345679")
    assert done.code == 2
    assert f"did you mean {run_id!r}?" in done.err
