"""The gateway's handlers of calls that are answered in one piece: vectors, classes, token ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from raylm.serve.asked import Asked
from raylm.serve.body import read_json
from raylm.serve.call import ADJUSTED, Call
from raylm.serve.catalog import Entry
from raylm.serve.classify import ClassifyBody, classify
from raylm.serve.dispatch import Meter
from raylm.serve.embeddings import EmbeddingBody, embeddings
from raylm.serve.endpoints import Gateway
from raylm.serve.failure import timed_out
from raylm.serve.reply import Reply, Terms
from raylm.serve.reported import reported, with_headers
from raylm.serve.sse import unless_disconnected
from raylm.serve.tenant import Tenant, tenant_of
from raylm.serve.tokenize import DetokenizeBody, TokenizeBody, detokenize, tokenize

Question = TypeVar("Question", bound=Asked)
Work = Callable[[Question, Entry, Terms], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Replies:
    """Handlers over the state of a gateway."""

    gateway: Gateway

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        return await self._answer(request, "embeddings", EmbeddingBody, embeddings)

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify."""
        return await self._answer(request, "classify", ClassifyBody, classify)

    async def tokenize(self, request: Request) -> Response:
        """POST /v1/tokenize."""
        return await self._answer(request, "tokenize", TokenizeBody, tokenize)

    async def detokenize(self, request: Request) -> Response:
        """POST /v1/detokenize."""
        return await self._answer(request, "detokenize", DetokenizeBody, detokenize)

    async def _answer(
        self, request: Request, route: str, kind: type[Question], work: Work[Question]
    ) -> Response:
        tenant = tenant_of(request.scope)
        limit_s = self.gateway.limits.request_timeout_s
        call = Call(route, tenant.name, self.gateway.metrics, limit_s)
        return await reported(call, self._admitted(request, call, tenant, kind, work))

    async def _admitted(
        self,
        request: Request,
        call: Call,
        tenant: Tenant,
        kind: type[Question],
        work: Work[Question],
    ) -> Response:
        gateway = self.gateway
        call.heed(request.headers)
        body = kind.parse(await read_json(request, gateway.limits, gateway.admission))
        with ExitStack() as held:
            gateway.admission.enter(tenant)
            held.callback(gateway.admission.leave)
            entry = gateway.catalog.only(tenant.models).find(body.model, body.variant)
            call.take(entry.model, body)

            reply = asyncio.ensure_future(work(body, entry, self._terms(entry, tenant, call, held)))
            try:
                async with asyncio.timeout(call.left_s):
                    finished = await unless_disconnected(request.receive, reply)
            except TimeoutError:
                raise timed_out(call.limit_s) from None
            if not finished:
                call.end(499)
                return Response(status_code=499)
            call.end_reply(reply.result().num_tokens)
            if reply.result().num_cut:
                call.tell(ADJUSTED, "truncated", reply.result().num_cut)
            return with_headers(Response(reply.result().body, media_type="application/json"), call)

    def _terms(self, entry: Entry, tenant: Tenant, call: Call, held: ExitStack) -> Terms:
        gateway, meter = self.gateway, Meter()

        async def count(num_tokens: int) -> None:
            await gateway.dispatch.count(tenant, num_tokens, call, held, meter)

        def turn(num_tokens: int) -> AbstractAsyncContextManager[None]:
            return gateway.dispatch.reading(
                entry, tenant, call, meter, num_tokens=num_tokens, priority=gateway.priority
            )

        return Terms(
            call.id,
            tenant.name,
            gateway.limits,
            time.time() + call.left_s,
            count,
            turn,
            gateway.priority,
        )
