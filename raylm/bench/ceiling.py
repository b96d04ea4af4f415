"""Ceiling: how much this client can do, against a server that does next to nothing.

Client and server share the cores of this machine, here as well as when raylm is measured on one
machine; a figure near the ceiling is one of the client.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from raylm.bench.client import Client
from raylm.bench.figures import figures, tokens_at, window_of
from raylm.bench.level import Level, Quota
from raylm.errors import HostError

CLIENTS = 32
DURATION_S = 1.5
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that this client took from the trivial server, 32 requests at a time."""

    requests_per_s: float
    chunks_per_s: float
    chunks_per_request: int
    busy_share: float
    """Of the time, in which the client's thread had work to do."""


async def measure_ceiling(chunks: int) -> Ceiling:
    """Ask a server of a process of its own for answers of so many chunks.

    Raises:
        HostError: it does not start.
    """
    body = json.dumps({"max_tokens": chunks, "stream": True}).encode()
    async with trivial_server() as url, Client(url) as client:
        level = Level(
            lambda body, draft: client.ask("completions", body, draft),
            lambda index: body,
            Quota(CLIENTS, None, DURATION_S),
            max_in_flight=CLIENTS,
            max_requests=10**6,
        )
        await level.closed_loop(CLIENTS)
    found = figures(level.records)
    if found.num_ok == 0:
        raise HostError(
            f"the client could not be measured: {found.failures}", code="bench-ceiling",
            hint="--no-ceiling leaves it out",
        )  # fmt: skip
    measured = [record for record in level.records if record.phase == "measured"]
    times, _ = tokens_at(level.records, window_of(measured))
    return Ceiling(
        found.requests_per_s, len(times) / found.window_s, chunks, round(level.busy_share, 3)
    )


@asynccontextmanager
async def trivial_server() -> AsyncIterator[str]:
    """The base URL of a trivial server, which ends with the block, or with this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "raylm.bench.trivial_server",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for the one who measures.
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        if not line:
            raise HostError("the server to measure the client with did not start",
                            code="bench-ceiling", hint="--no-ceiling leaves it out")  # fmt: skip
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()
            await process.wait()
