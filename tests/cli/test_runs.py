import json
from pathlib import Path

import pytest

from raylm.store import Store
from tests.observe.histories import step


@pytest.fixture
def runs(store: Store) -> Store:
    """One run that is done, and one that was killed after two steps."""
    process = {"host": "elsewhere", "pid": 1, "created": 0.0}
    for name, zero, count, state in (("a-11111111", 2, 4, "done"), ("b-22222222", 3, 2, "running")):
        work = store.root / "runs" / name / "train-abc"
        work.mkdir(parents=True)
        lines = [
            step(n, 5.0 - n + (0.25 if (zero, n) == (3, 2) else 0)) for n in range(1, count + 1)
        ]
        (work / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        record = {
            "id": name, "name": name[0], "state": state, "started": "2026-11-24T00:00:00",
            "config": {"train": {"zero": zero}}, "process": process, "stages": [],
        }  # fmt: skip
        (work.parent / "run.json").write_text(json.dumps(record))
    return store


def test_diff_shows_what_differs_first_and_losses_at_equal_steps(raylm, runs: Store) -> None:
    found = raylm("runs", "diff", "a", "b", "-o", "json").json
    assert found["config"] == [{"name": "train.zero", "a": 2, "b": 3}]
    assert found["losses"] == [{"at": 1, "a": 4.0, "b": 4.0}, {"at": 2, "a": 3.0, "b": 3.25}]
    assert found["first_other_step"] == 2
    text = raylm("runs", "diff", "a", "b").out
    assert "data: not made yet" in text
    assert "losses: the first that differs is that of step 2" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("train.zero")]
    assert row == ["train.zero", "2", "3"]


def test_diff_with_itself_finds_nothing(raylm, runs: Store) -> None:
    text = raylm("runs", "diff", "a", "a").out
    assert "config: the same" in text
    assert "losses: equal to the last digit at every common step" in text


def test_show_tells_how_a_running_training_stands(raylm, runs: Store) -> None:
    text = raylm("runs", "show", "b").out
    rows = {line[:11].strip(): line[11:] for line in text.splitlines()}
    assert rows["step"] == "2 of 100"
    assert rows["MFU"] == "unknown"
    assert rows["tokens/s"] == "60 lately, 50 overall"
    assert rows["data wait"] == "1.0 ms a step"
    assert rows["memory"] == "2.0 MiB now, 4.0 MiB at most, of the fullest worker"
    assert rows["left"] == "5.0 s"
    assert raylm("runs", "show", "a", "-o", "json").json["last_step"]["step"] == 4


def test_report_is_written_for_a_run_that_is_not_done(raylm, runs: Store) -> None:
    path = Path(raylm("runs", "report", "b").out.strip())
    assert path == runs.root / "runs" / "b-22222222" / "report.html"
    assert "<svg" in path.read_text()
