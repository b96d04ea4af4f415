"""Why a deployment does not come up, in one line."""

from __future__ import annotations

import pytest

from raylm.errors import ConfigError, HostError, ModelError
from raylm.progress import silent
from raylm.serve.replica import CAUSE
from raylm.serve.startup import (
    AppState,
    DeploymentState,
    judge,
    last_exception,
    progress,
    wait_running,
)

TRACE = f"""A replica failed to start with exception. Retrying 1 more time(s). Error:
Traceback (most recent call last):
  File "x.py", line 3, in __init__
    raise RuntimeError(...)
RuntimeError: {CAUSE}ModelError[unsupported-architecture] the model is a MambaForCausalLM
"""


def app(status: str = "DEPLOYING", **changes: object) -> AppState:
    fields = {"name": "engine-m", "running": 1, "wanted": 2, "unplaced": False, "message": ""}
    deployment = DeploymentState(**{**fields, "failed": False, **changes})  # type: ignore[arg-type]
    return AppState(status, "", (deployment,))


def test_nothing_is_wrong_while_it_starts():
    assert judge(app()) is None
    tick = progress(app())
    assert (tick.text, tick.done, tick.total) == ("starting engine-m", 1, 2)


def test_the_replicas_own_reason_is_found():
    error = judge(app(message=TRACE))
    assert isinstance(error, ModelError)
    assert error.code == "unsupported-architecture"
    assert error.message == "the model is a MambaForCausalLM"


@pytest.mark.parametrize(
    ("state", "code", "says"),
    [
        (
            app(failed=True, message="Traceback:\nImportError: no x\n\nmore"),
            "deploy-failed",
            "no x",
        ),
        (app("DEPLOY_FAILED"), "deploy-failed", "no reason was given"),
    ],
)
def test_other_reasons(state, code, says):
    error = judge(state)
    assert isinstance(error, HostError) and error.code == code and says in error.message


def test_the_exceptions_line_is_found_in_a_traceback():
    text = "Traceback\n  File x\nray.exceptions.RayTaskError: a\nbuiltins.OSError: disk\nThe end."
    assert last_exception(text) == "builtins.OSError: disk"
    assert last_exception("just this\n") == "just this"


def test_a_config_error_of_a_replica_stays_one():
    error = judge(app(message=f"RuntimeError: {CAUSE}ConfigError[odd] no such kind"))
    assert isinstance(error, ConfigError) and error.message == "no such kind"


@pytest.mark.parametrize(("unplaced", "code"), [(True, "not-placed"), (False, "deploy-timeout")])
def test_what_is_late_says_how_far_it_came(unplaced, code):
    state = app(unplaced=unplaced)
    with pytest.raises(HostError, match="engine-m 1 of 2") as caught:
        wait_running(lambda: state, {"engine-m": 2}, 0.0, silent)
    assert caught.value.code == code
