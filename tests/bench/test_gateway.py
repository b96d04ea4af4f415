"""The client against raylm's own gateway: what that streams is a whole answer to this."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from raylm.bench.client import Client, clock
from raylm.bench.record import Draft, Record
from tests.bench.server import running
from tests.serve.conftest import model_files, serve_here  # noqa: F401

PROMPTS = {
    "completions": {"prompt": "the quick"},
    "chat/completions": {"messages": [{"role": "user", "content": "the quick"}]},
}


@pytest.mark.parametrize("path", PROMPTS)
def test_an_answer_of_the_gateway_is_whole(serve_here, path: str) -> None:  # noqa: F811
    app = serve_here().client.app
    body = {"model": "tiny", **PROMPTS[path], "max_tokens": 5, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip

    async def ask(url: str) -> tuple[str, Record]:
        async with Client(url, timeout_s=30) as client:
            draft = Draft(0, "measured", 0.0, clock())
            await client.ask(path, json.dumps(body).encode(), draft)
            return await client.only_model(), draft.finished(clock())

    with socket.create_server(("127.0.0.1", 0)) as listening, running(app, listening):
        model, found = asyncio.run(ask(f"http://127.0.0.1:{listening.getsockname()[1]}/v1"))
    assert model == "tiny"
    assert (found.failure, found.detail) == (None, None)
    assert found.completion_tokens == 5
    assert found.prompt_tokens > 0
    assert 1 <= len(found.chunks_at_s) <= 5
