import os
import subprocess
import sys

import pytest

from raylm.deploy import owned

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    "time.sleep(60)"
)


def start(value: str, code: str = "print('up', flush=True); import time; time.sleep(60)"):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "RAYLM_TEST_MARK": value},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_marked_finds_by_exact_value_and_never_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLM_TEST_MARK", "a1")
    one, other = start("a1"), start("a12")
    try:
        assert owned.marked("RAYLM_TEST_MARK", "a1") == [one.pid]
        assert {"a1", "a12"} <= owned.marks("RAYLM_TEST_MARK")
    finally:
        one.kill(), other.kill()
        one.wait(), other.wait()
    assert owned.marked("RAYLM_TEST_MARK", "a1") == []


def test_stop_kills_what_ignores_sigterm() -> None:
    process = start("b2", STUBBORN)
    ended, left = owned.stop(lambda: owned.marked("RAYLM_TEST_MARK", "b2"), term_s=0.3)
    assert (ended, left) == (1, [])
    assert process.wait(5) == -9
