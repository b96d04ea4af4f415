import pickle

import pytest

from raylm.errors import (
    ConfigError,
    GateError,
    HostError,
    MissingExtra,
    RaylmError,
    RequestError,
    nearest,
)


@pytest.mark.parametrize(
    ("kind", "code"), [(RaylmError, 1), (ConfigError, 2), (HostError, 3), (GateError, 4)]
)
def test_each_branch_has_its_exit_code(kind: type[RaylmError], code: int) -> None:
    assert kind("x", code="y").exit_code == code


def test_errors_keep_everything_when_pickled() -> None:
    error = RequestError("too long", code="c", hint="h", status=413, param="prompt")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RequestError
    assert (str(again), again.code, again.hint, again.status, again.param) == (
        "too long", "c", "h", 413, "prompt",
    )  # fmt: skip


def test_a_missing_extra_names_the_pip_line() -> None:
    error = MissingExtra("vllm", extra="vllm")
    assert error.hint == "pip install 'raylm[vllm]'"
    assert pickle.loads(pickle.dumps(error)).hint == error.hint


def test_nearest_offers_only_what_is_near() -> None:
    assert nearest("steps_", ["steps", "seed"]) == "steps"
    assert nearest("zzz", ["steps", "seed"]) is None
