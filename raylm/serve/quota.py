"""Quota: a gateway's side of tenants' limits, which all gateways count together.

One message to the ledger and back before the answer to a tenant that has limits, and one at its
end that nobody waits for; tenants without limits cost nothing. While a tenant has plenty left, its
calls may begin beside that message (`has_plenty`). A ledger that does not answer must not take
answers down: the gateway then counts for itself, with its part of every limit, and asks again a
little later (`raylm.serve.aside`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from raylm.errors import RequestError
from raylm.serve.aside import Aside
from raylm.serve.ledger import Ledger, Level, Verdict
from raylm.serve.tenant import Limits, Tenant

Take = Callable[[str, str, Limits, int, float], Awaitable[Verdict]]
"""(lease, tenant, limits, tokens, lease_s) -> verdict."""
Settle = Callable[[str, int], Awaitable[None]]
"""(lease, used tokens)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A call that was let in; `settle` once at its end."""

    id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    close: Callable[[str, int], None] = lambda lease, num_tokens: None

    def settle(self, num_used_tokens: int) -> None:
        """Tell what the call came to."""
        self.close(self.id, num_used_tokens)


NO_LIMITS = Lease()
PLENTY = 0.25
"""Of a limit, what must have been left for the next call to be begun before it is judged."""


class LimitReached(RequestError):
    """429: a tenant has asked for more than it may; `headers` tell how it stands."""

    def __init__(self, verdict: Verdict) -> None:
        what = {
            "requests": "requests per minute",
            "tokens": "tokens per minute",
            "concurrency": "requests at a time",
        }[verdict.refused or "requests"]
        super().__init__(
            f"the limit of this API key on {what} is reached; try again later",
            code=f"{verdict.refused}-limit-reached",
            status=429,
            retry_after_s=verdict.retry_after_s,
        )
        self.headers = rate_headers(verdict)


class Quota:
    """Takes and settles; `num_gateways` share the limits while the ledger is away."""

    def __init__(
        self,
        take: Take,
        settle: Settle,
        *,
        num_gateways: int,
        lease_s: float,
        on_away: Callable[[], None],
    ) -> None:
        self._take, self._settle = take, settle
        self._num_gateways = num_gateways
        self._lease_s = lease_s
        self._on_away = on_away
        self._aside = Aside("the deployment that counts limits")
        self._own = Ledger()
        self._last: dict[str, Verdict] = {}

    def has_plenty(self, tenant: Tenant, num_tokens: int) -> bool:
        """Whether a call is all but certain to be let in, as the last one's verdict had it.

        The call is judged all the same, and by what all gateways know; if it is refused after all,
        the next one is judged first.
        """
        last = self._last.get(tenant.id)
        if last is None or last.refused is not None:
            return False
        levels = (last.requests, 1), (last.tokens, num_tokens)
        return all(
            level is None or level.remaining >= num + PLENTY * level.limit for level, num in levels
        )

    async def take(self, tenant: Tenant, num_tokens: int) -> Lease:
        """Count a call that may come to so many tokens.

        Raises:
            RequestError: 429, with how the tenant stands; 400 for what can never be let in.
        """
        limits = tenant.limits
        if not limits.any:
            return NO_LIMITS
        if limits.tokens_per_minute is not None and num_tokens > limits.tokens_per_minute:
            raise RequestError(
                f"the request may come to {num_tokens} tokens, of its texts and answers, and this "
                f"API key may use {limits.tokens_per_minute} a minute",
                code="tokens-above-limit",
            )
        lease, close, was_away = uuid.uuid4().hex, self._close, self._aside.is_away
        try:
            verdict = await self._aside.ask(
                lambda: self._take(lease, tenant.id, limits, num_tokens, self._lease_s)
            )
        except asyncio.CancelledError:
            self._close(lease, 0)  # its client has left, and it may have been counted
            raise
        if verdict is None:
            if not was_away:
                self._close(lease, 0)  # it may have been counted, and only the answer is lost
            self._on_away()
            verdict, close = self._take_own(lease, tenant, num_tokens), self._close_own
        self._last[tenant.id] = verdict
        if verdict.refused is not None:
            raise LimitReached(verdict)
        return Lease(lease, rate_headers(verdict), close)

    def _close(self, lease: str, num_tokens: int) -> None:
        self._aside.tell(lambda: self._settle(lease, num_tokens))

    def _take_own(self, lease: str, tenant: Tenant, num_tokens: int) -> Verdict:
        part = share(tenant.limits, self._num_gateways)
        if part.tokens_per_minute is not None:
            # More than the part but not than the whole: it goes in when the part is untouched.
            num_tokens = min(num_tokens, part.tokens_per_minute)
        return self._own.take(
            lease, tenant.id, part, num_tokens, now_s=time.monotonic(), lease_s=self._lease_s
        )

    def _close_own(self, lease: str, num_tokens: int) -> None:
        self._own.settle(lease, num_tokens, now_s=time.monotonic())


def share(limits: Limits, num_gateways: int) -> Limits:
    """One gateway's part of every limit, and never nothing."""
    parts = {
        name: None if value is None else -(-value // num_gateways)
        for name, value in dataclasses.asdict(limits).items()
    }
    return Limits(**parts)


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*` headers."""
    levels: dict[str, Level | None] = {"requests": verdict.requests, "tokens": verdict.tokens}
    return {
        f"x-ratelimit-{name}-{what}": text
        for what, level in levels.items()
        if level is not None
        for name, text in (
            ("limit", str(level.limit)),
            ("remaining", str(level.remaining)),
            ("reset", f"{level.reset_s:.3f}s"),
        )
    }
