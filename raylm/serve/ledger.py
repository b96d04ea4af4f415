"""Ledger: what tenants have asked for, against what they may. Pure; time is a parameter.

Requests and tokens are token buckets: a minute's worth at most, refilled evenly. A call takes
one request and reserves the most tokens that it may come to; what it did not use comes back at
its end. Concurrency is counted by leases, which end by themselves when a gateway dies with them.
Times are on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from raylm.serve.tenant import Limits

Refused = Literal["requests", "tokens", "concurrency"]


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after a call was judged."""

    limit: int
    remaining: int
    reset_s: float
    """Until it is full again, if nothing more is taken."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call may begin, and how its tenant stands."""

    refused: Refused | None = None
    retry_after_s: float = 0.0
    requests: Level | None = None
    tokens: Level | None = None


@dataclass(slots=True)
class Bucket:
    """A token bucket that holds a minute's worth."""

    per_minute: int
    level: float
    filled_s: float

    def fill(self, now_s: float) -> None:
        """Add what has come since the last time."""
        passed_s = max(0.0, now_s - self.filled_s)
        self.level = min(self.per_minute, self.level + passed_s * self.per_minute / 60)
        self.filled_s = now_s

    def wait_s(self, num: float) -> float:
        """How long until there are `num`; 0: there are. A little for the rounding of times."""
        missing = num - self.level
        return 0.0 if missing <= 1e-6 else missing * 60 / self.per_minute

    def shown(self) -> Level:
        """For the client."""
        missing = self.per_minute - self.level
        return Level(
            self.per_minute, max(0, int(self.level + 1e-6)), missing * 60 / self.per_minute
        )


@dataclass(frozen=True, slots=True)
class _Lease:
    tenant: str
    num_tokens: int
    ends_s: float


@dataclass(slots=True)
class _Account:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    leases: dict[str, _Lease] = field(default_factory=dict)


class Ledger:
    """The accounts of all tenants that have limits."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._tenant_of: dict[str, str] = {}

    def take(
        self,
        lease: str,
        tenant: str,
        limits: Limits,
        num_tokens: int,
        *,
        now_s: float,
        lease_s: float,
    ) -> Verdict:
        """Judge a call, and count it if it may begin; `settle` is to follow within `lease_s`."""
        account = self._account(tenant, limits, now_s)
        waits = dict(self._waits(account, limits, num_tokens))
        if waits:
            # The longest, so that who comes back then is not refused for the other.
            refused = max(waits, key=lambda name: waits[name])
            return _verdict(account, refused, waits[refused])
        if account.requests is not None:
            account.requests.level -= 1
        if account.tokens is not None:
            account.tokens.level -= num_tokens
        account.leases[lease] = _Lease(tenant, num_tokens, now_s + lease_s)
        self._tenant_of[lease] = tenant
        return _verdict(account)

    def settle(self, lease: str, num_used_tokens: int, *, now_s: float) -> None:
        """A call has ended: its place is free, and the tokens it did not use come back."""
        tenant = self._tenant_of.pop(lease, None)
        if tenant is None:
            return  # its time was over
        account = self._accounts[tenant]
        held = account.leases.pop(lease)
        if account.tokens is not None:
            account.tokens.level += held.num_tokens - num_used_tokens
            account.tokens.fill(now_s)

    def _account(self, tenant: str, limits: Limits, now_s: float) -> _Account:
        account = self._accounts.setdefault(tenant, _Account())
        account.requests = _bucket(account.requests, limits.requests_per_minute, now_s)
        account.tokens = _bucket(account.tokens, limits.tokens_per_minute, now_s)
        for lease, held in list(account.leases.items()):
            if held.ends_s <= now_s:
                del account.leases[lease], self._tenant_of[lease]
        return account

    def _waits(
        self, account: _Account, limits: Limits, num_tokens: int
    ) -> Iterator[tuple[Refused, float]]:
        """What a call has to wait for, and how long."""
        if account.requests is not None and (wait_s := account.requests.wait_s(1)) > 0:
            yield "requests", wait_s
        if account.tokens is not None and (wait_s := account.tokens.wait_s(num_tokens)) > 0:
            yield "tokens", wait_s
        if limits.max_concurrency is not None and len(account.leases) >= limits.max_concurrency:
            yield "concurrency", 1.0


def _bucket(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    """The bucket as the limits are now; a new limit keeps what was taken."""
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, per_minute, now_s)
    bucket.fill(now_s)
    if bucket.per_minute != per_minute:
        bucket.level += per_minute - bucket.per_minute
        bucket.per_minute = per_minute
    return bucket


def _verdict(
    account: _Account, refused: Refused | None = None, retry_after_s: float = 0.0
) -> Verdict:
    requests = None if account.requests is None else account.requests.shown()
    tokens = None if account.tokens is None else account.tokens.shown()
    return Verdict(refused, retry_after_s, requests, tokens)
