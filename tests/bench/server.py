"""A real HTTP server that answers as a test says."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server does with one request."""

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    wait_s: float = 0.0
    """Before anything is sent."""
    gap_s: float = 0.0
    pieces: int = 4
    tokens: int | None = None
    """In `usage`; None leaves it out."""
    is_finished: bool = True
    is_done: bool = True
    is_whole: bool = True
    """False breaks the connection after the pieces."""
    error: str | None = None
    """An error event after the pieces."""
    split: int | None = None
    """Sends the stream in parts of so many bytes, wherever events end."""
    eol: str = "\n"
    raw: bytes | None = None
    """The whole body, instead of events."""


@dataclass
class Server:
    """Where it is, and what it was asked."""

    url: str
    answer: Callable[[int, Body], Answer]
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[bytes, bytes]] = field(default_factory=list)
    num_left: int = 0
    """Clients that went away in the middle."""
    stalled_until: float = 0.0
    """On time.monotonic's clock: every answer waits for it."""
    models: dict[str, str | None] = field(default_factory=lambda: {"tiny": None})
    """Names and their roots."""
    list_models: Answer | None = None
    """Instead of the models."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/models":
            listed = self.list_models or Answer()
            data = [{"id": name, "root": root} for name, root in self.models.items()]
            body = listed.raw or json.dumps({"data": data}).encode()
            await reply(send, listed.status, body)
            return
        message = await receive()
        read = message["body"]
        while message.get("more_body"):
            message = await receive()
            read += message["body"]
        asked: Body = json.loads(read)
        number = len(self.bodies)
        self.bodies.append(asked)
        self.headers.append(dict(scope["headers"]))
        answer = self.answer(number, asked)
        streamed = asyncio.create_task(self.stream(scope["path"], answer, send))
        left = asyncio.create_task(receive())
        await asyncio.wait([streamed, left], return_when=asyncio.FIRST_COMPLETED)
        if not streamed.done():
            self.num_left += 1
        for task in (streamed, left):
            task.cancel()
        await asyncio.gather(streamed, left, return_exceptions=True)

    async def stream(self, path: str, answer: Answer, send: Any) -> None:
        await asyncio.sleep(max(answer.wait_s, self.stalled_until - time.monotonic()))
        if answer.status != 200 or answer.raw is not None:
            await reply(send, answer.status, answer.raw or b'{"error": "no"}', answer.headers)
            return
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")]})  # fmt: skip
        is_chat = path.endswith("chat/completions")
        parts = [piece(is_chat, "", None, answer.eol)] if is_chat else []
        parts += [piece(is_chat, " w", None, answer.eol) for _ in range(answer.pieces)]
        if answer.error is not None:
            parts.append(event({"error": {"message": answer.error}}, answer.eol))
        if answer.is_finished:
            parts.append(piece(is_chat, "", "length", answer.eol))
        if answer.tokens is not None:
            usage = {"prompt_tokens": 7, "completion_tokens": answer.tokens}
            parts.append(event({"choices": [], "usage": usage}, answer.eol))
        if answer.is_done:
            parts.append(f"data: [DONE]{answer.eol}{answer.eol}".encode())
        if answer.split is not None:
            whole = b"".join(parts)
            parts = [whole[i : i + answer.split] for i in range(0, len(whole), answer.split)]
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(answer.gap_s)
        if answer.is_whole:
            await send({"type": "http.response.body", "body": b""})


async def reply(send: Any, status: int, body: bytes, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def event(document: Body, eol: str) -> bytes:
    return f": a comment{eol}data: {json.dumps(document)}{eol}{eol}".encode()


def piece(is_chat: bool, text: str, finish_reason: str | None, eol: str) -> bytes:
    said = {"delta": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    return event({"choices": [{"index": 0, **said, "finish_reason": finish_reason}]}, eol)


@contextmanager
def running(app: Any, listening: socket.socket) -> Iterator[None]:
    """An ASGI app behind a real socket, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield
    server.should_exit = server.force_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """serve(answer) -> a running server; `answer` is an Answer, or makes one of (number, body)."""
    with ExitStack() as stack:

        def start(answer: Answer | Callable[[int, Body], Answer] = Answer(tokens=4)) -> Server:
            listening = socket.create_server(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            made = Server(url, answer if callable(answer) else lambda number, body: answer)
            stack.enter_context(running(made, listening))
            return made

        yield start
