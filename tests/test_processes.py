"""A process is known by its number and when it began."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from raylm.processes import created, created_here, is_same


def test_a_later_process_with_the_same_number_is_not_the_same() -> None:
    assert is_same(os.getpid(), created_here())
    assert is_same(os.getpid(), int(created_here())), "whole seconds are enough"
    assert not is_same(os.getpid(), created_here() - 3600)


def test_a_process_that_ended_is_not_alive_even_before_its_parent_looked() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = created(process.pid)
    assert began is not None
    process.kill()
    deadline = time.monotonic() + 10
    while created(process.pid) is not None:
        assert time.monotonic() < deadline, "a zombie is not alive"
        time.sleep(0.01)
    assert not is_same(process.pid, began)
    process.wait()
    assert not is_same(process.pid, began)
