"""Joining asynchronous streams: what is ready together travels together.

A token costs a message between processes and a write to a socket; under load several are
ready by the time the last message is out, and go as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def batched(
    stream: AsyncIterator[T], *, idle_s: float | None = None
) -> AsyncGenerator[Sequence[T], None]:
    """The items of a stream in lists of all that came since the last list was taken.

    With `idle_s`, an empty list says every so many seconds without an item that its sender is
    alive. Closing it early closes the stream, too.
    """
    ready: list[T] = []
    wake = asyncio.Event()

    async def read() -> None:
        try:
            async for item in stream:
                ready.append(item)
                wake.set()
        finally:
            wake.set()

    reader = asyncio.create_task(read())
    try:
        while not (reader.done() and not ready):
            try:
                async with asyncio.timeout(idle_s):
                    await wake.wait()
            except TimeoutError:
                yield []
                continue
            wake.clear()
            if ready:
                taken = ready.copy()
                ready.clear()
                yield taken
        await reader  # raises what the stream raised
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        close: Any = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def merged(
    streams: Sequence[AsyncGenerator[Sequence[T], None]],
) -> AsyncGenerator[list[tuple[int, T]], None]:
    """The items of several streams as they come, each with the index of its stream.

    The first error of any of them ends all; closing early closes all.
    """
    if len(streams) == 1:
        try:
            async for items in streams[0]:
                yield [(0, item) for item in items]
        finally:
            await streams[0].aclose()
        return
    queue: asyncio.Queue[tuple[int, Sequence[T]]] = asyncio.Queue()

    async def read(index: int, stream: AsyncGenerator[Sequence[T], None]) -> None:
        async for items in stream:
            queue.put_nowait((index, items))

    readers = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    everything = asyncio.gather(*readers)
    everything.add_done_callback(lambda _: queue.put_nowait((0, ())))
    try:
        while not (everything.done() and queue.empty()):
            index, items = await queue.get()
            if everything.done() and not everything.cancelled() and everything.exception():
                break
            if items:
                yield [(index, item) for item in items]
        await everything
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, everything, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
