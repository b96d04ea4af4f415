"""Call: one completion or chat request on its way through the gateway, and what it measures."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from raylm.errors import RequestError
from raylm.serve.answer import Answer
from raylm.serve.backend import Backend
from raylm.serve.format import Format
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.sse import event

UNKNOWN = "unknown"
"""The model's name in metrics while no served model is known; keeps the label's values few."""


@dataclass(slots=True)
class Call:
    """One request: its id, its times, and where they are reported."""

    route: str
    metrics: GatewayMetrics
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    """Ours alone: engines know requests by it, so clients must not choose it."""
    model: str = UNKNOWN
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last_token_s: float = 0.0
    _ended: bool = False

    def mark_tokens(self) -> None:
        """Tokens have come."""
        self.last_token_s = time.monotonic()
        if self.first_token_s is None:
            self.first_token_s = self.last_token_s

    def end(self, status: int, answer: Answer | None = None) -> None:
        """Report the call, once; 499 for a client that left."""
        if self._ended:
            return
        self._ended = True
        self.metrics.answered(self.model, self.route, status, time.monotonic() - self.started_s)
        if status == 499:
            self.metrics.aborted(self.model, self.route)
        if answer is None:
            return
        first_s = self.first_token_s or self.started_s
        self.metrics.tokens(
            self.model,
            self.route,
            first_s=first_s - self.started_s,
            rest_s=self.last_token_s - first_s,
            num_prompt=answer.plan.num_prompt_tokens,
            num=answer.num_generated_tokens,
        )
        for choice in answer.choices:
            self.metrics.finished(self.model, choice.finish_reason or _why(status))

    async def collect(self, answer: Answer, backend: Backend) -> None:
        """Run an answer to its end.

        Raises:
            RequestError: refused, or the engine failed.
        """
        async for _ in answer.read(backend):
            self.mark_tokens()

    async def events(
        self, answer: Answer, backend: Backend, form: Format, *, include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer; those that are ready together are one piece.

        Raises:
            RequestError: refused, or the engine failed.
        """
        source = answer.read(backend)
        try:
            async for items in source:
                self.mark_tokens()
                pieces = [form.event(choice, chunk) for choice, chunk in items]
                data = b"".join(event(piece) for piece in pieces if piece is not None)
                if data:
                    yield data
        finally:
            await source.aclose()
        if include_usage:
            yield event(form.usage_event(answer.usage()))


def _why(status: int) -> str:
    return "aborted" if status == 499 else "error"


def status_of(error: RequestError | None) -> int:
    """The status a call ends with."""
    return 200 if error is None else error.status
