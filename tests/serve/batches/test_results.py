"""Answers on the disk, whatever is cut short."""

from __future__ import annotations

import errno
import os

import pytest

from raylm.serve.batches.files import Files
from raylm.serve.batches.results import Results
from raylm.serve.batches.status import State, Tally

STATE = State("in_progress", output_id="file-" + "a" * 32, errors_id="file-" + "b" * 32)


def answer(custom_id):
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}
    return {"custom_id": custom_id, "response": {"body": {"usage": usage}}}


def test_what_was_flushed_is_found_again_and_what_was_cut_short_is_cut_off(tmp_path):
    files = Files(tmp_path)
    results = Results.open(files, STATE)
    for name in "ab":
        results.add(answer(name), is_error=False)
    results.add({"custom_id": "c"}, is_error=True)
    results.flush()
    results.add(answer("lost"), is_error=False)
    path = files.content(STATE.output_id)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"custom_id": "d", "resp')

    again = Results.open(files, STATE)
    assert again.done == {"a", "b", "c"}
    assert again.tally == Tally(2, 1, input_tokens=10, output_tokens=4)
    assert path.read_bytes() == whole


def test_an_answer_that_is_there_is_not_added_again(tmp_path):
    results = Results.open(Files(tmp_path), STATE)
    results.add(answer("a"), is_error=False)
    results.add(answer("a"), is_error=True)
    results.flush()
    results.flush()
    assert Results.open(Files(tmp_path), STATE).tally == Tally(1, 0, 5, 0, 2)


def test_a_full_disk_leaves_whole_lines_and_what_is_pending(tmp_path, monkeypatch):
    files = Files(tmp_path)
    results = Results.open(files, STATE)
    results.add(answer("a"), is_error=False)
    write = os.write

    def full(descriptor, data):
        if len(data) > 4:
            return write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="full"):
            results.flush()
    assert files.content(STATE.output_id).read_bytes() == b""
    results.flush()
    assert Results.open(files, STATE).done == {"a"}
