"""The life of a batch: OpenAI's statuses, and which follows which. Pure.

Only the executor moves a batch on; a client's wish to cancel lies beside it until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled",
    "expired",
]  # fmt: skip
Event = Literal["accepted", "refused", "answered", "stored", "cancel", "late"]

_AFTER: Mapping[tuple[Status, Event], Status] = {
    ("validating", "accepted"): "in_progress",
    ("validating", "refused"): "failed",
    ("validating", "cancel"): "cancelling",
    ("validating", "late"): "expired",
    ("in_progress", "answered"): "finalizing",
    ("in_progress", "cancel"): "cancelling",
    ("in_progress", "late"): "expired",
    ("finalizing", "stored"): "completed",
    ("cancelling", "stored"): "cancelled",
}
FINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "expired"})
CANCELLABLE: frozenset[Status] = frozenset({"validating", "in_progress"})


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a batch is refused, or one line of it."""

    message: str
    code: str
    line: int | None = None
    """From 1; None where it is of the file as a whole."""
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What the answers of a batch add up to."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens, those that were in an engine's cache."""
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Where a batch is; `since` has the Unix time at which it came into each status."""

    status: Status = "validating"
    since: Mapping[Status, float] = field(default_factory=dict)
    total: int = 0
    """Requests in it; 0 before they are counted."""
    tally: Tally = Tally()
    problems: tuple[Problem, ...] = ()
    output_id: str = ""
    """Ids are chosen before the first answer; they are files when the batch has ended."""
    errors_id: str = ""

    @property
    def is_final(self) -> bool:
        """Nothing changes any more."""
        return self.status in FINAL

    def after(self, event: Event, now_s: float) -> State:
        """The state that follows; `now_s` is Unix time."""
        status = _AFTER[self.status, event]
        return replace(self, status=status, since={**self.since, status: now_s})


def shown(state: State, cancel_s: float | None) -> State:
    """The state as clients see it: a wish to cancel (Unix time) counts from when it was uttered."""
    if cancel_s is None or state.status not in CANCELLABLE:
        return state
    return state.after("cancel", cancel_s)
