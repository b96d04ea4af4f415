import threading
import time

import pytest

from raylm.data.pace import Pacer
from raylm.progress import Tick


def test_long_work_gives_signs_of_life_from_the_callers_thread() -> None:
    ticks: list[tuple[Tick, int]] = []
    pacer = Pacer(lambda tick: ticks.append((tick, threading.get_ident())), every_s=0.02)
    assert pacer.run(lambda: time.sleep(0.2) or 7, lambda: pacer.say("working")) == 7
    assert len(ticks) >= 3
    assert {thread for _, thread in ticks} == {threading.get_ident()}
    assert ticks[0][0] == Tick("data", "working")


def test_progress_is_counted_in_bytes() -> None:
    ticks: list[Tick] = []
    Pacer(ticks.append).say("reading", 3, 10)
    assert ticks == [Tick("data", "reading", 3, 10, "B")]


def test_items_pass_in_order_with_ticks_while_they_come() -> None:
    ticks: list[Tick] = []
    pacer = Pacer(ticks.append, every_s=0.0)
    seen = list(pacer.iterate(iter([[1], [2], [3]]), lambda: pacer.say("x")))
    assert seen == [[1], [2], [3]]
    assert len(ticks) >= 3


def test_an_error_in_the_work_is_raised_here() -> None:
    def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        Pacer(lambda tick: None).run(fail, lambda: None)
