import json
import os
import socket
from pathlib import Path

import psutil
import pytest

from raylm.observe.history import read_history, state_of, work_of
from raylm.store import Store


@pytest.mark.parametrize(
    ("state", "host", "created", "expected"),
    [
        ("running", None, 0.0, "running"),
        ("running", None, -100.0, "killed"),  # its number belongs to another process by now
        ("running", "elsewhere", -100.0, "running"),
        ("done", None, -100.0, "done"),
        ("interrupted", None, -100.0, "interrupted"),
    ],
)
def test_a_run_that_says_it_runs_and_has_no_process_was_killed(
    state: str, host: str | None, created: float, expected: str
) -> None:
    process = {
        "host": host or socket.gethostname(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time() + created,
    }
    assert state_of({"state": state, "process": process}) == expected
    assert state_of({"state": state}) == state


def test_the_train_folder_is_that_of_the_record_else_the_one_written_last(tmp_path: Path) -> None:
    for age, name in enumerate(("train-bbb", "train-aaa")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
        os.utime(tmp_path / name / "metrics.jsonl", (100 + age, 100 + age))
    assert work_of(tmp_path, {"stages": []}) == tmp_path / "train-aaa"
    recorded = {"stages": [{"stage": "train", "key": "bbb"}]}
    assert work_of(tmp_path, recorded) == tmp_path / "train-bbb"
    assert work_of(tmp_path / "none", recorded) is None


def test_what_is_half_written_or_removed_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = tmp_path / "runs" / "x-1" / "train-abc"
    work.mkdir(parents=True)
    (work / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    skip = {"window": 4, "step": 4, "why": "the loss is nan", "samples": [1], "documents": []}
    (work / "skipped.json").write_text(json.dumps([skip]))
    with store.draft("dataset", "x") as draft:
        (draft.path / "rows").write_bytes(b"123")
        made = draft.commit()
    stages = [{"stage": "data", "ref": made.ref}, {"stage": "evaluate", "ref": "report/gone-1"}]
    found = read_history(store, {"id": "x-1", "state": "failed", "stages": stages})
    assert [line["step"] for line in found.steps] == [1]
    assert found.skips == [{"window": 4, "step": 4, "why": "the loss is nan"}]
    assert {name: manifest.digest for name, manifest in found.made.items()} == {"data": made.digest}
