"""What this client can do, against a server that does next to nothing."""

from __future__ import annotations

import asyncio
import json

from raylm.bench.ceiling import measure_ceiling, trivial_server
from raylm.bench.client import Client, clock
from raylm.bench.record import Draft


def test_the_trivial_server_answers_as_asked_and_ends_with_its_user() -> None:
    async def ask() -> list[Draft]:
        async with trivial_server() as url, Client(url, timeout_s=30) as client:
            drafts = [Draft(0, "measured", 0.0, clock()) for _ in range(2)]
            for draft, tokens in zip(drafts, (3, 70), strict=True):
                body = json.dumps({"max_tokens": tokens, "prompt": "x" * 70_000}).encode()
                await client.ask("completions", body, draft)
        async with Client(url, timeout_s=30) as client:
            drafts.append(Draft(0, "measured", 0.0, clock()))
            await client.ask("completions", b"{}", drafts[-1])
        return drafts

    first, second, gone = asyncio.run(ask())
    assert [(d.failure, len(d.chunks_at_s), d.completion_tokens) for d in (first, second)] == [
        (None, 3, 3), (None, 70, 70),
    ]  # fmt: skip
    assert gone.failure == "connect"


def test_the_ceiling_is_that_of_streams_of_the_given_length() -> None:
    found = asyncio.run(measure_ceiling(8))
    assert found.chunks_per_request == 8
    assert found.requests_per_s > 0
    assert 6 < found.chunks_per_s / found.requests_per_s < 10
    assert 0 < found.busy_share <= 1
