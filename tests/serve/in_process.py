"""Many calls at once to a gateway in this process, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2 as httpx

from raylm.serve.keys import Key, hash_key
from raylm.serve.tenant import Limits, Tenant

URL = "/v1/completions"


def key_of(name: str) -> str:
    return f"sk-test-0123456789-{name}"


def a_key(name: str, **changes: Any) -> Key:
    """The key of a tenant, with what it may do."""
    limits = Limits(**changes.pop("limits", {}))
    return Key(hash_key(key_of(name)), Tenant(f"id-{name}", name, limits=limits, **changes))


def header(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_of(name)}"}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "the fox", "max_tokens": 4, "temperature": 0, **changes}


def calls(served: Any, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Run `work` with a client of the gateway; ten seconds at most."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app=served.app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
            asyncio.timeout(10),
        ):
            return await work(client)

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    """Wait; the caller has a deadline."""
    while not holds():
        await asyncio.sleep(0.001)
