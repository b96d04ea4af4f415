"""`python -m raylm.bench.trivial_server`: streams answers as fast as it can, for the ceiling.

It prints its port and lives until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(event: str) -> bytes:
    """An event as one chunk of an HTTP body."""
    data = f"data: {event}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _choice(text: str, finish_reason: str | None) -> str:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return json.dumps({"id": "cmpl-0", "object": "text_completion", "choices": [choice]})


_PIECE = framed(_choice(" word", None))


class Answers(asyncio.Protocol):
    """One connection: requests one after the other, each answered with `max_tokens` pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return
        self._read = b""
        self._transport.write(_HEAD)
        self._piece(int(json.loads(body)["max_tokens"]), 0)

    def _piece(self, wanted: int, sent: int) -> None:
        if self._transport.is_closing():
            return
        if sent < wanted:
            self._transport.write(_PIECE)
            # Each in a turn of its own: answers run beside one another, as those of models do.
            asyncio.get_running_loop().call_soon(self._piece, wanted, sent + 1)
            return
        usage = {"prompt_tokens": 1, "completion_tokens": wanted}
        end = (_choice("", "length"), json.dumps({"choices": [], "usage": usage}), "[DONE]")
        self._transport.write(b"".join(map(framed, end)) + b"0\r\n\r\n")


async def main() -> None:
    """Serve on a free port of loopback."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answers, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
