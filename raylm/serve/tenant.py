"""Tenant: who a key belongs to, and what it may do.

A tenant's `id` never comes back for another: what must not be shared between tenants is kept
apart by it, not by the name, which people may give again after a key was revoked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from starlette.types import Scope as AsgiScope

from raylm.errors import RequestError
from raylm.serve.plan import Plan
from raylm.serve.wire import MAX_PRIORITY

Scope = Literal["infer", "metrics"]
SCOPES: tuple[Scope, ...] = ("infer", "metrics")
"""`infer`: everything under `/v1`; `metrics`: `/metrics`."""
_STATE = "raylm.tenant"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may ask of all gateways together; None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is something to count."""
        return self != Limits()


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer of the endpoint; plain values, since gateways get them pickled."""

    id: str
    name: str
    scopes: tuple[Scope, ...] = SCOPES
    models: tuple[str, ...] | None = None
    """Names of the models it may use; None: all."""
    limits: Limits = Limits()
    weight: float = 1.0
    """Its share where more is wanted than the engines do, in proportion to the others'."""
    max_priority: int = 0
    """The highest `priority` that its requests may ask for."""
    expires_s: float | None = None
    """Unix time."""

    def check_scope(self, path: str) -> None:
        """See that the key may use a path.

        Raises:
            RequestError: 403.
        """
        needed: Scope = "metrics" if path == "/metrics" else "infer"
        if needed not in self.scopes:
            raise RequestError(
                f"this API key has no scope {needed!r}", code="insufficient-scope", status=403
            )

    def signed(self, plan: Plan, priority: int | None, *, isolate: bool) -> Plan:
        """The plan in this tenant's name. Nothing of it but the priority is the client's word,
        and that counts from the plan's own.

        Raises:
            RequestError: 403, the key does not allow this priority.
        """
        priority = plan.requests[0].priority + (priority or 0)
        if priority > self.max_priority:
            raise RequestError(
                f"priority={priority} is more than this API key allows ({self.max_priority})",
                code="priority-not-allowed",
                status=403,
                param="priority",
            )
        salt = self.id if isolate else ""
        return dataclasses.replace(
            plan,
            requests=tuple(
                dataclasses.replace(r, tenant=self.name, cache_salt=salt, priority=priority)
                for r in plan.requests
            ),
        )


ANYONE = Tenant("", "default", max_priority=MAX_PRIORITY)
"""Who asks where no keys are needed."""


def set_tenant(scope: AsgiScope, tenant: Tenant) -> None:
    """Note whose request this is."""
    scope[_STATE] = tenant


def tenant_of(scope: AsgiScope) -> Tenant:
    """Whose request this is; the guard in front of all routes has noted it."""
    tenant = scope[_STATE]
    assert isinstance(tenant, Tenant)
    return tenant


def num_reserved_tokens(plan: Plan) -> int:
    """The most tokens that a call may come to: its prompts, and answers of full length."""
    return plan.num_prompt_tokens + sum(r.sampling.max_tokens for r in plan.requests)
