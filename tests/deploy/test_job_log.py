import json

import pytest

from raylm.deploy.job_log import JobLog
from raylm.deploy.jobs import read_log

RESULT = {"run_id": "tiny-1", "path": "/s/runs/tiny-1", "stages": [{"stage": "data", "x": {}}]}
DONE = f"Running entrypoint\ndata: reading (0.0 s)\n{json.dumps(RESULT, indent=2)}\n"


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_lines_and_result_are_told_apart_whatever_the_pieces(size: int) -> None:
    shown: list[str] = []
    log = JobLog(show=shown.append)
    for start in range(0, len(DONE), size):
        log.feed(DONE[start : start + size])
    log.close()
    assert log.result == RESULT
    assert log.error is None
    assert shown == ["Running entrypoint", "data: reading (0.0 s)"]


@pytest.mark.parametrize(
    "text",
    [
        '{\n  "a": 1\n}\nmore\n',  # a document, but no run's
        "{\n  not JSON\n}\nmore\n",
        "{\nhalf a document",
        "{\n{\n",
        "no line end",
    ],
)
def test_what_is_no_result_is_shown_as_it_is(text: str) -> None:
    shown: list[str] = []
    log = JobLog(show=shown.append)
    log.feed(text)
    log.close()
    assert log.result is None
    assert shown == text.removesuffix("\n").split("\n")


def test_a_result_after_a_lonely_brace_is_found() -> None:
    assert read_log("{\n" + DONE[DONE.index("{") :]).result == RESULT


def test_the_last_error_is_taken_apart() -> None:
    log = read_log(
        "error[first]: overtaken\nhint: no\n"
        "error[config-value]: raylm.yaml:3: train.zero=4\nraylm.yaml:4: more\n"
        "hint: see there\nbye\n"
    )
    assert log.error == {
        "code": "config-value",
        "message": "raylm.yaml:3: train.zero=4\nraylm.yaml:4: more",
        "hint": "see there",
    }
    assert read_log("error[job-x]: it broke").error == {
        "code": "job-x", "message": "it broke", "hint": None,
    }  # fmt: skip
