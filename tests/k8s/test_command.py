"""Commands of this machine, and what becomes of late and absent ones."""

import pytest

from k8s.local.command import run, succeeds
from raylm.errors import HostError


def test_a_probe_that_is_late_has_not_succeeded() -> None:
    assert succeeds("true")
    assert not succeeds("false")
    assert not succeeds("sleep", "60", timeout_s=0.1)


def test_a_command_that_is_late_or_absent_is_an_error() -> None:
    with pytest.raises(HostError, match="did not end within 0 s") as late:
        run("sleep", "60", timeout_s=0.1)
    assert late.value.code == "k8s-late"
    for call in (run, succeeds):
        with pytest.raises(HostError, match="no-such-program"):
            call("no-such-program")
