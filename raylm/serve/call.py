"""Call: one completion or chat request on its way through the gateway, and what it measures."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from raylm.errors import RequestError
from raylm.serve.answer import Answer, Source
from raylm.serve.asked import Asked
from raylm.serve.catalog import ServedModel
from raylm.serve.format import Format
from raylm.serve.headers import REQUEST_ID, client_id, wait_s
from raylm.serve.metrics import GatewayMetrics

OWN_ID = "x-raylm-id"
DEFAULTS = "x-raylm-defaults"
"""What was decided for a request that left it open."""
ADJUSTED = "x-raylm-adjusted"
"""What a request asked for and did not get in full."""
VARIANT = "x-raylm-variant"
"""Which of a model's variants answered."""
UNKNOWN = "unknown"
"""The model's name in metrics while no served model is known; keeps the label's values few."""


@dataclass(slots=True)
class Call:
    """One request: its id, its times, and where they are reported."""

    route: str
    tenant: str
    metrics: GatewayMetrics
    limit_s: float
    """The most time that it may take."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    """Ours alone: engines know requests by it, so clients must not choose it."""
    client_id: str | None = None
    """The name that the client has for it."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the response, beside its kind and size."""
    model: str = UNKNOWN
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last_token_s: float = 0.0
    _ended: bool = False

    def __post_init__(self) -> None:
        self.headers[REQUEST_ID] = self.id

    def heed(self, headers: Headers) -> None:
        """Take what the client says of the call.

        Raises:
            RequestError: that cannot be used.
        """
        self.client_id = client_id(headers)
        if self.client_id is not None:
            self.headers |= {REQUEST_ID: self.client_id, OWN_ID: self.id}
        wanted_s = wait_s(headers)
        if wanted_s is not None and wanted_s > self.limit_s:
            self.tell(ADJUSTED, "timeout_ms", round(self.limit_s * 1000))
        elif wanted_s is not None:
            self.limit_s = wanted_s

    def take(self, model: ServedModel, asked: Asked) -> None:
        """Note which model answers; of one with variants the client is told which."""
        self.model = model.name
        if model.variant is None:
            return
        self.headers[VARIANT] = model.variant
        if asked.variant is None and asked.model == model.model:
            self.tell(DEFAULTS, "variant", model.variant)

    def tell(self, header: str, what: str, value: int | str) -> None:
        """Let the client know a value that it did not choose."""
        said = self.headers.get(header)
        self.headers[header] = f"{said}, {what}={value}" if said else f"{what}={value}"

    @property
    def label(self) -> str:
        """How logs name it."""
        return self.id if self.client_id is None else f"{self.id} ({self.client_id})"

    @property
    def left_s(self) -> float:
        """What is left of its time."""
        return self.started_s + self.limit_s - time.monotonic()

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
        self.metrics.used(
            self.tenant, num_prompt=answer.plan.num_prompt_tokens, num=answer.num_generated_tokens
        )
        for choice in answer.choices:
            self.metrics.finished(self.model, choice.finish_reason or _why(status))

    def end_reply(self, num_tokens: int) -> None:
        """Report a call that made no text: its texts had so many tokens."""
        self.end(200)
        self.metrics.read(self.model, num_tokens)
        self.metrics.used(self.tenant, num_prompt=num_tokens, num=0)

    async def collect(self, answer: Answer, source: Source) -> None:
        """Run an answer to its end.

        Raises:
            RequestError: refused, or the engine failed.
        """
        async for _ in answer.read(source):
            self.mark_tokens()

    async def events(
        self, answer: Answer, source: Source, form: Format
    ) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer; those that are ready together are one piece.

        Raises:
            RequestError: refused, or the engine failed.
        """
        taken = answer.read(source)
        try:
            async for items in taken:
                self.mark_tokens()
                data = b"".join(form.events(choice, chunk) for choice, chunk in items)
                if data:
                    yield data
        finally:
            await taken.aclose()


def _why(status: int) -> str:
    return "aborted" if status == 499 else "error"


def status_of(error: RequestError | None) -> int:
    """The status a call ends with."""
    return 200 if error is None else error.status
