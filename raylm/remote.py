"""What Ray raises, turned back into what was raised: one line of cause, not five of wrapping."""

from __future__ import annotations

from typing import Any

from raylm.errors import HostError, RaylmError


def get(references: Any) -> Any:
    """`ray.get`, raising the error that the task itself raised.

    Raises:
        RaylmError: the task's own; a HostError if its process died.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(references)
    except RayError as error:
        raise translate(error, "a Ray task failed", code="task-failed") from error


def translate(error: BaseException, what: str, *, code: str, hint: str | None = None) -> RaylmError:
    """The RaylmError inside a chain of Ray's errors, or a new one that names the root cause."""
    causes = _chain(error)
    for cause in causes:
        if isinstance(cause, RaylmError):
            return cause
        inner = getattr(cause, "cause", None)
        if isinstance(inner, OSError) and inner.errno is not None:
            return HostError(f"{what}: {inner}", code="host-io", hint=hint)
    last = causes[-1]
    lines = [line for line in str(last).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else ""
    return RaylmError(f"{what}: {type(last).__name__}: {text}", code=code, hint=hint)


def _chain(error: BaseException) -> list[BaseException]:
    seen: list[BaseException] = []
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if not isinstance(current, BaseException) or any(current is s for s in seen):
            continue
        seen.append(current)
        queue += [getattr(current, "cause", None), current.__cause__]
        queue += list((getattr(current, "worker_failures", None) or {}).values())
    return seen
