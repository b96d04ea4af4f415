"""Flight: one computation that several equal calls listen to.

It runs in a task of its own, so that the call that began it can leave without ending it for the
others; when the last one has left, it ends. All hear the same chunks from the first on, and the
same error if there is one: a request that breaks engines is not tried again by every listener.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from raylm.serve.answer import Items, Source


class Flight:
    """An answer in the making. `on_whole` is given it when it is whole; `on_end` is called when
    nobody may join any more."""

    def __init__(
        self,
        source: Source,
        on_whole: Callable[[Sequence[Items]], Awaitable[None]],
        on_end: Callable[[], None],
    ) -> None:
        self._source = source
        self._on_whole = on_whole
        self._on_end = on_end
        self._heard: list[Items] = []
        self._is_over = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._num_listeners = 0
        self._task = asyncio.get_running_loop().create_task(self._run())

    def join(self) -> None:
        """One more listener; `leave` must follow."""
        self._num_listeners += 1

    def leave(self) -> None:
        """One fewer; without any, nobody needs the answer."""
        self._num_listeners -= 1
        if self._num_listeners == 0 and not self._is_over:
            self._on_end()
            self._task.cancel()

    async def listen(self) -> AsyncGenerator[Items, None]:
        """All that is heard, from the beginning.

        Raises:
            RequestError: what ended the computation.
        """
        num_heard = 0
        while True:
            news = self._news
            while num_heard < len(self._heard):
                num_heard += 1
                yield self._heard[num_heard - 1]
            if self._is_over:
                break
            if news is self._news:  # nothing came while the last was taken
                await news.wait()
        if self._error is not None:
            raise copy.copy(self._error) from self._error

    async def _run(self) -> None:
        try:
            async for items in self._source:
                self._heard.append(items)
                self._wake()
        except Exception as error:
            self._error = error
        finally:
            await self._source.aclose()
            self._is_over = True
            self._wake()
        if self._error is None:
            # Who comes meanwhile still finds it here, so that it is computed once.
            await self._on_whole(self._heard)
        self._on_end()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
