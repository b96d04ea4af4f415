"""Every error that raylm raises on purpose, as one tree.

    RaylmError               exit 1   the run failed
    ├── ConfigError          exit 2   the configuration or the command line is wrong
    ├── HostError            exit 3   this machine or cluster lacks something
    │   └── MissingExtra     exit 3   an optional dependency is not installed
    ├── GateError            exit 4   a quality gate was not met
    ├── DataError            exit 1   the corpus cannot be used
    ├── ArtifactError        exit 1   a stored artifact is missing, altered or half there
    ├── ModelError           exit 1   a model folder cannot be used
    ├── TrainError           exit 1   training ended without a result
    └── RequestError         exit 1   a request to an engine or to the gateway is refused

An error says what is wrong (`message`), where to look it up (`code`, stable, kebab-case)
and what to do about it (`hint`). Assertions are for raylm's own invariants only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaylmError(Exception):
    """An error with a stable code, one line of cause, and a remedy."""

    exit_code: int = 1

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes by pickling; keyword-only arguments need help.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[RaylmError], state: dict[str, object]) -> RaylmError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class ConfigError(RaylmError):
    """The configuration, or a flag on the command line, cannot be used."""

    exit_code = 2


class HostError(RaylmError):
    """The machine or the cluster cannot do this: disk, port, memory, version, rights."""

    exit_code = 3


class MissingExtra(HostError):
    """An optional dependency is needed and not installed."""

    def __init__(self, module: str, *, extra: str) -> None:
        super().__init__(
            f"this needs the package {module!r}, which is not installed",
            code="missing-extra",
            hint=f"pip install 'raylm[{extra}]'",
        )


class GateError(RaylmError):
    """A measured figure is outside what the configuration allows."""

    exit_code = 4


class DataError(RaylmError):
    """The corpus is missing, empty, unreadable, or too small."""


class ArtifactError(RaylmError):
    """An artifact is missing, altered, truncated, or still needed by others."""


class ModelError(RaylmError):
    """A model folder is incomplete, unsafe, or of an unknown architecture."""


class TrainError(RaylmError):
    """Training ended without a result."""


class RequestError(RaylmError):
    """A request is refused; `status` is the HTTP status, `param` the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hint: str | None = None,
        status: int = 400,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
