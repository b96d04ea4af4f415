"""Begun: a stream whose work has begun before it is known whether anyone will read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """The work towards the first item of `source` begins at once. `close` once at the end, however
    far it was read."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._first = asyncio.get_running_loop().create_task(self._pull())
        self._is_read = False
        self._closing: asyncio.Task[None] | None = None

    async def items(self) -> AsyncGenerator[T, None]:
        """The stream, for one reader."""
        self._is_read = True
        try:
            for item in await self._first:
                yield item
            async for item in self._source:
                yield item
        finally:
            await self._end()

    def close(self) -> None:
        """End the work, if nobody reads it."""
        if not self._is_read and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._end())

    async def _pull(self) -> list[T]:
        """The first item; nothing of a stream without any."""
        async for item in self._source:
            return [item]
        return []

    async def _end(self) -> None:
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._source.aclose()
