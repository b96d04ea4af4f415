import queue

import pytest

from raylm.engine.watchdog import Watchdog
from raylm.errors import RaylmError


@pytest.fixture
def watch():
    made = []

    def watch(timeout_s):
        told = queue.Queue()
        made.append(Watchdog(timeout_s, told.put))
        return made[-1], told

    yield watch
    for watchdog in made:
        watchdog.stop()


def test_each_step_that_hangs_is_told_once(watch):
    watchdog, told = watch(0.02)
    for _ in range(2):
        watchdog.begin()
        assert told.get(timeout=5).code == "engine-stalled"
        with pytest.raises(RaylmError, match=r"more than 0\.02 s"):
            watchdog.check()
        with pytest.raises(queue.Empty):
            told.get(timeout=0.1)
        watchdog.end()
        watchdog.check()


def test_steps_that_end_in_time_are_no_hang(watch):
    watchdog, told = watch(60.0)
    watchdog.begin()
    watchdog.check()
    watchdog.end()
    assert told.empty()
