"""Load and hostile clients against a deployed endpoint, in one event loop of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raylm.deploy.ports import LOOPBACK
from tests.serve.deployed import KEY


@dataclass(slots=True)
class Seen:
    """What became of many requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    """Of those that were answered with 200."""
    refusals_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    """Refusals with 503 or 429 that do not say when to come again."""

    def line(self) -> str:
        """For the log of a measurement."""
        answered = f"{dict(self.statuses)}"
        ok, no = share(self.latencies_s, 0.5), share(self.latencies_s, 0.99)
        return (
            f"{answered}, p50 {ok:.3f} s, p99 {no:.3f} s; refused p99 {share(self.refusals_s):.3f}"
        )


def share(values: Sequence[float], quantile: float = 0.99) -> float:
    """A quantile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[int(quantile * (len(ordered) - 1))] if ordered else 0.0


def head(path: str = "/v1/completions", *more: str, method: str = "POST") -> bytes:
    """Request line and headers with the key, without the end of headers."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", *more]
    return "".join(f"{line}\r\n" for line in lines).encode()


def completion(**fields: Any) -> bytes:
    """A whole request for a completion."""
    body = json.dumps({"model": "tiny", "prompt": "the fox", "temperature": 0, **fields}).encode()
    return (
        head(
            "/v1/completions", "Content-Type: application/json", f"Content-Length: {len(body)}",
            "Connection: close",
        )
        + b"\r\n" + body
    )  # fmt: skip


async def ask(port: int, data: bytes, seen: Seen, timeout_s: float = 60.0) -> None:
    """One request on a connection of its own; 0 is a connection without an answer."""
    begun = time.monotonic()
    answer = b""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(data)
                answer = await reader.read(-1)
            finally:
                writer.close()
    took = time.monotonic() - begun
    status = _status(answer)
    seen.statuses[status] += 1
    (seen.latencies_s if status == 200 else seen.refusals_s).append(took)
    if status in (429, 503):
        seen.without_retry_after += b"\r\nretry-after: " not in answer.lower()


async def closed_loop(port: int, data: bytes, num_clients: int, num_each: int) -> Seen:
    """Clients that each ask again when they have their answer."""
    seen = Seen()

    async def client() -> None:
        for _ in range(num_each):
            await ask(port, data, seen)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    return seen


async def open_loop(port: int, data: bytes, rate_per_s: float, duration_s: float) -> Seen:
    """Requests at fixed times, whether the ones before are answered or not."""
    seen = Seen()
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate_per_s * duration_s)):
            await asyncio.sleep(begun + number / rate_per_s - time.monotonic())
            group.create_task(ask(port, data, seen))
    return seen


async def hold(
    port: int, begin: bytes, drip: bytes, every_s: float, limit_s: float
) -> tuple[float, int]:
    """Send `begin` and then byte by byte; seconds until the other side closes, and the status."""
    begun, said = time.monotonic(), b""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(begin)
                answer = asyncio.create_task(reader.read(-1))
                for byte in drip:
                    writer.write(bytes([byte]))
                    done, _ = await asyncio.wait({answer}, timeout=every_s)
                    if done:
                        break
                said = await answer
            finally:
                writer.close()
    return time.monotonic() - begun, _status(said)


def _status(answer: bytes) -> int:
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
