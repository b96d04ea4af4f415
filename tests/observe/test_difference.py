from dataclasses import replace

import pytest

from raylm.observe.difference import Losses, Row, difference, equal_places, first_other_step
from tests.observe.histories import history, step

BASE = {"versions": {"raylm": "1", "torch": "2"}, "git_revision": "abc"}


def test_only_what_differs_of_config_data_and_code_is_shown() -> None:
    a = history(
        "a", [], config={"seed": 0, "train": {"zero": 2, "lora": None}},
        stages={"data": {"ref": "dataset/x-0011", "metrics": {"tokens": 5, "files": 1}}}, **BASE,
    )  # fmt: skip
    b = history(
        "b", [], config={"seed": 0, "train": {"zero": 3, "lora": {"rank": 4}}},
        stages={"data": {"ref": "dataset/x-0022", "metrics": {"tokens": 6, "files": 1}}},
        versions={"raylm": "1", "torch": "3"}, git_revision="abc",
    )  # fmt: skip
    found = difference(a, b)
    assert found.config == [
        Row("train.zero", 2, 3),
        Row("train.lora.rank", None, 4),
    ]
    assert found.data == [Row("digest", "0011", "0022"), Row("tokens", 5, 6)]
    assert found.code == [Row("torch", "2", "3")]
    assert found.results == []
    assert found.losses == []


def test_a_run_that_was_killed_is_compared_as_far_as_it_came() -> None:
    a = history("a", [step(n, 10.0 - n) for n in range(1, 6)], stages={"compress": {"metrics": {}}})
    lines = [step(n, 10.0 - n) for n in range(1, 4)]
    lines.append({"step": 3, "time": 3.0, "event": "resume", "workers": 1})
    b = history("b", [{"step": 0, "event": "start"}, *lines], state="killed")
    found = difference(a, b)
    assert found.states == ("done", "killed")
    assert found.losses_by == "step"
    assert [x.at for x in found.losses] == [1, 2, 3]
    assert found.first_other_step is None
    rows = {row.name: (row.a, row.b) for row in found.results}
    assert rows["steps"] == (5, 3)
    assert rows["train_s"] == (10.0, 6.0)
    assert rows["memory_peak_bytes"] == (2**22, 2**22)
    assert rows["restarts"] == (0, 1)
    assert rows["gate"] == ("held", None)


def test_a_gate_that_was_not_met_is_said() -> None:
    a = history("a", [], error_code="gate-not-met")
    assert difference(a, a).results == [Row("gate", "not met", "not met")]


def test_the_first_step_with_another_loss_is_found_to_the_last_digit() -> None:
    a = [step(n, 1.0 / n) for n in range(1, 50)]
    b = [*a[:30], step(31, 1.0 / 31 + 1e-16), *a[31:]]
    assert first_other_step(a, a[5:]) is None
    assert first_other_step(a, b) == 31


def test_losses_are_compared_at_evenly_spread_steps_that_both_have() -> None:
    a = [step(n, float(n)) for n in range(1, 101)]
    b = [step(n, n + 0.5) for n in range(2, 81, 2)]
    found = equal_places(a, b, "step")
    assert [x.at for x in found] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert all(x.b - x.a == 0.5 for x in found)


def test_steps_of_another_size_are_compared_at_equal_tokens() -> None:
    a = history("a", [step(n, float(n)) for n in range(1, 41)])
    b = history("b", [step(n, -1.0 * n, tokens=400 * n) for n in range(1, 9)])
    found = difference(a, b)
    assert found.losses_by == "tokens"
    assert found.first_other_step is None
    assert found.losses[0] == Losses(400, 4.0, -1.0)
    assert found.losses[-1] == Losses(3200, 32.0, -8.0)


@pytest.mark.parametrize("lines", [[], [step(1, 2.0)]])
def test_a_run_without_steps_is_compared_all_the_same(lines: list) -> None:
    a = history("a", lines)
    assert difference(a, replace(a, lines=[])).losses == []
