"""Dispatch: a call's way to its chunks.

First it is counted against its tenant's limits; then its chunks are kept ones, those of an equal
call, or made by the engines when it is its turn, for which its tenant is charged. Texts to embed or
classify have a turn each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from raylm.serve.answer import Items, Source
from raylm.serve.begun import Begun
from raylm.serve.cache import ResultCache
from raylm.serve.call import Call
from raylm.serve.catalog import Entry
from raylm.serve.gather import merged
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.plan import Plan
from raylm.serve.quota import LimitReached, Quota
from raylm.serve.results import result_key
from raylm.serve.tenant import Tenant, num_reserved_tokens
from raylm.serve.turns import Turns


@dataclass(slots=True)
class Meter:
    """Tokens that engines have worked on for a call; none for what came from the cache."""

    num_tokens: int = 0


@dataclass(slots=True)
class Dispatch:
    """How one gateway's calls reach the engines."""

    quota: Quota
    turns: Turns
    metrics: GatewayMetrics
    cache: ResultCache | None = None
    engine_key: str = ""
    """What of the engine's settings may change a text."""
    isolate: bool = True
    """Each tenant has its own cache."""

    async def begin(
        self,
        plan: Plan,
        entry: Entry,
        tenant: Tenant,
        call: Call,
        held: ExitStack,
        *,
        repeatable: bool,
    ) -> Source:
        """Let a call in, and tell where its chunks come from.

        What must be given back at its end is put on `held`; what the client is told, into the
        call's headers. Only a `repeatable` call is looked up among the answers that are kept.

        Raises:
            RequestError: 429 or 400, its tenant's limits do not allow it.
        """
        meter, num_tokens = Meter(), num_reserved_tokens(plan)
        # A folder whose content nobody has hashed may change under its name.
        if self.cache is not None and entry.model.digest and repeatable:
            await self.count(tenant, num_tokens, call, held, meter)
            return await self._kept(self.cache, plan, entry, tenant, call, held, meter)
        if not self.quota.has_plenty(tenant, num_tokens):
            await self.count(tenant, num_tokens, call, held, meter)
            return self._in_turn(plan, entry, tenant, meter)
        # The engines begin while the message to the ledger is under way.
        begun = Begun(self._in_turn(plan, entry, tenant, meter))
        held.callback(begun.close)
        await self.count(tenant, num_tokens, call, held, meter)
        return begun.items()

    async def _kept(
        self,
        cache: ResultCache,
        plan: Plan,
        entry: Entry,
        tenant: Tenant,
        call: Call,
        held: ExitStack,
        meter: Meter,
    ) -> Source:
        """The chunks of an answer that is kept, or will be."""
        owner = tenant.id if self.isolate else ""
        # Whoever listens has a deadline of its own; when the last has left, the work ends.
        requests = tuple(replace(request, deadline_s=None) for request in plan.requests)
        work = replace(plan, requests=requests)
        served = await cache.serve(
            result_key(plan, entry.model.digest, self.engine_key, owner),
            plan,
            lambda: self._in_turn(work, entry, tenant, meter),
            entry.model.digest,
        )
        held.callback(served.close)
        call.headers["x-raylm-cache"] = served.found
        self.metrics.looked_up(entry.model.name, served.found)
        return served.items

    async def count(
        self, tenant: Tenant, num_tokens: int, call: Call, held: ExitStack, meter: Meter
    ) -> None:
        """Count a call that may come to so many tokens against its tenant's limits.

        At its end, when `held` is closed, it comes to what the meter says.

        Raises:
            RequestError: 429 or 400, the limits do not allow it.
        """
        try:
            lease = await self.quota.take(tenant, num_tokens)
        except LimitReached as error:
            call.headers |= error.headers
            self.metrics.limited(tenant.name)
            raise
        held.callback(lambda: lease.settle(meter.num_tokens))
        call.headers |= lease.headers

    @asynccontextmanager
    async def reading(
        self,
        entry: Entry,
        tenant: Tenant,
        call: Call,
        meter: Meter,
        *,
        num_tokens: int,
        priority: int,
    ) -> AsyncGenerator[None, None]:
        """The turn of one of a call's texts, which has so many tokens.

        Raises:
            RequestError: 503, it gave up its place.
        """
        model = entry.model.name
        async with self.turns.turn(model, tenant, priority=priority, call=call.id) as turn:
            turn.charge(num_input=num_tokens)
            meter.num_tokens += num_tokens
            yield

    async def _in_turn(
        self, plan: Plan, entry: Entry, tenant: Tenant, meter: Meter
    ) -> AsyncGenerator[Items, None]:
        requests = plan.requests
        async with self.turns.turn(
            entry.model.name, tenant, priority=requests[0].priority, num_answers=len(requests)
        ) as turn:
            # Every answer to a prompt costs the engines the prompt; the client has sent it once.
            turn.charge(num_input=sum(len(request.prompt_ids) for request in requests))
            meter.num_tokens += plan.num_prompt_tokens
            source = merged([entry.backend.generate(request) for request in requests])
            try:
                async for items in source:
                    num_tokens = sum(len(chunk.token_ids) for _, chunk in items)
                    turn.charge(num_output=num_tokens)
                    meter.num_tokens += num_tokens
                    yield items
            finally:
                await source.aclose()
