"""One request of a batch, asked of the very handlers that answer HTTP, without HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from raylm.serve.endpoints import Gateway
from raylm.serve.replies import Replies
from raylm.serve.tenant import Tenant, set_tenant

Handler = Callable[[Request], Awaitable[Response]]
LATER = frozenset({429, 503})
"""Full, or not ready: asked again for as long as the batch has time."""
FAILED = frozenset({500, 504})
"""Broken on the way, or out of its turn for too long: asked again a few times."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended."""

    status: int
    request_id: str
    body: dict[str, Any]
    retry_after_s: float

    def line(self, custom_id: str, line_id: str) -> dict[str, Any]:
        """As it stands in a batch's output."""
        response = {
            "status_code": self.status, "request_id": self.request_id, "body": self.body,
        }  # fmt: skip
        return {"id": line_id, "custom_id": custom_id, "response": response, "error": None}


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request that fails is asked again, and after how long."""

    max_failures: int = 5
    first_s: float = 1.0
    longest_s: float = 60.0

    def wait_s(self, tries: int, retry_after_s: float) -> float:
        """How long to wait after so many tries: twice as long each time, or what was asked for."""
        doubled_s = self.first_s * 2.0 ** min(tries - 1, 32)
        return min(self.longest_s, max(retry_after_s, doubled_s))


def handlers(gateway: Gateway) -> Mapping[str, Handler]:
    """Who answers which endpoint."""
    replies = Replies(gateway)
    return {
        "/v1/chat/completions": gateway.chat,
        "/v1/completions": gateway.completions,
        "/v1/embeddings": replies.embeddings,
        "/v1/classify": replies.classify,
    }


async def ask(
    handler: Handler, body: bytes, tenant: Tenant, retry: Retry, slots: asyncio.Semaphore
) -> Reply:
    """The answer to a tenant's request, whatever it is; asked again as `retry` says.

    It holds a slot while it is asked, and none while it waits: a tenant at its limits must not
    hold up others.
    """
    tries = failures = 0
    while True:
        async with slots:
            reply = await _once(handler, body, tenant)
        tries += 1
        failures += reply.status in FAILED
        if reply.status not in LATER | FAILED or failures >= retry.max_failures:
            return reply
        await asyncio.sleep(retry.wait_s(tries, reply.retry_after_s))


async def _once(handler: Handler, body: bytes, tenant: Tenant) -> Reply:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # this client never leaves
        raise AssertionError

    headers = [(b"content-type", b"application/json")]
    scope: Scope = {"type": "http", "headers": headers}
    set_tenant(scope, tenant)
    response = await handler(Request(scope, receive))
    return Reply(
        response.status_code,
        response.headers["x-request-id"],
        json.loads(bytes(response.body)),
        float(response.headers.get("retry-after", 0)),
    )
