"""Record: what became of one request; all times in seconds since its level of load began."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["warm-up", "measured", "cool-down"]
CUT = "cut"
"""Of a request that was on its way when its level ended: no failure, and in no latency."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request, from the time when it was due to its end."""

    index: int
    phase: Phase
    scheduled_at_s: float
    sent_at_s: float | None
    """When it was handed to the HTTP client; None where that did not happen."""
    chunks_at_s: tuple[float, ...]
    """When each piece of text was read."""
    ended_at_s: float
    failure: str | None
    """Its class (see `raylm.bench.client`), None for a whole answer."""
    detail: str | None
    """The first words of what the server or the system said of the failure."""
    prompt_tokens: int | None
    """From the server's `usage`; None where it gave none."""
    completion_tokens: int | None

    @property
    def is_ok(self) -> bool:
        """Whether the whole answer came."""
        return self.failure is None

    @property
    def lateness_s(self) -> float | None:
        """How late the client itself was."""
        return None if self.sent_at_s is None else self.sent_at_s - self.scheduled_at_s

    @property
    def ttft_s(self) -> float | None:
        """Time to the first text, from when the request was due."""
        return self.chunks_at_s[0] - self.scheduled_at_s if self.chunks_at_s else None

    @property
    def e2e_s(self) -> float:
        """Time to the end of the answer, from when the request was due."""
        return self.ended_at_s - self.scheduled_at_s

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: from `usage`, else as many as there were pieces of text."""
        return len(self.chunks_at_s) if self.completion_tokens is None else self.completion_tokens

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of one token or piece."""
        if self.num_tokens < 2 or len(self.chunks_at_s) < 2:
            return None
        return (self.chunks_at_s[-1] - self.chunks_at_s[0]) / (self.num_tokens - 1)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; times to the microsecond."""
        fields = {name: getattr(self, name) for name in Record.__slots__}
        times = [round(at, 6) for at in self.chunks_at_s]
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}
        return rounded | {"chunks_at_s": times}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Record:
        """What `to_json` wrote."""
        return Record(**fields | {"chunks_at_s": tuple(fields["chunks_at_s"])})


@dataclass(slots=True)
class Draft:
    """A record while its request is on its way."""

    index: int
    phase: Phase
    scheduled_at_s: float
    begun_s: float
    """The clock's time when the level began."""
    sent_at_s: float | None = None
    chunks_at_s: list[float] = field(default_factory=list)
    ended_at_s: float | None = None
    failure: str | None = None
    detail: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def fail(self, failure: str, detail: object = None) -> None:
        """State the class of what went wrong."""
        self.failure = failure
        self.detail = str(detail)[:200] if detail is not None else None

    def finished(self, now_s: float) -> Record:
        """The record; it ends now unless its end was seen before."""
        return Record(
            self.index,
            self.phase,
            self.scheduled_at_s,
            self.sent_at_s,
            tuple(self.chunks_at_s),
            now_s - self.begun_s if self.ended_at_s is None else self.ended_at_s,
            self.failure,
            self.detail,
            self.prompt_tokens,
            self.completion_tokens,
        )
