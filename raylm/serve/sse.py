"""Server-sent events: a stream that the client can tell to be whole or broken.

The official client takes a stream that merely ends for a complete answer. So what ends a whole
one (`[DONE]`, or `response.completed`) is sent on success alone; a failure is sent as an event
of its own, and then the connection ends without the final chunk of the body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from raylm.errors import RequestError
from raylm.serve.failure import error_response

log = logging.getLogger("raylm.serve")
DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(json_text: str, name: str | None = None) -> bytes:
    """One event; JSON text has no bare newline."""
    head = b"" if name is None else f"event: {name}\n".encode("ascii")
    return head + b"data: " + json_text.encode("utf-8") + b"\n\n"


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. Only after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Stalled(Exception):
    """The client takes nothing of what is sent."""


class EventStream(Response):
    """Sends events as they come; fails as plain JSON while nothing has been sent.

    `events` yields encoded events and raises RequestError to break the stream. It is closed
    when the client leaves, or takes nothing for `stall_s`: the server's buffer is full then.
    `last` makes the events that end a whole stream, `failure` those that end a broken one.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keep_alive_s: float,
        timeout_s: float,
        stall_s: float,
        last: Callable[[], bytes],
        failure: Callable[[RequestError], bytes],
        on_timeout: Callable[[], RequestError],
        on_defect: Callable[[], RequestError],
        on_end: Callable[[RequestError | None], None],
        on_close: Callable[[], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers=_HEADERS | (headers or {}), media_type="text/event-stream")
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._last = last
        self._failure = failure
        self._on_timeout = on_timeout
        self._on_defect = on_defect
        self._on_end = on_end
        self._on_close = on_close
        self._said = headers or {}
        self._started = False
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end, break, or the client leaves or stalls."""
        pump = asyncio.create_task(self._pump(scope, receive, send))
        watch = asyncio.create_task(disconnected(receive))
        heart = asyncio.create_task(self._beat(send))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                await pump
        except Stalled:
            log.warning("a stream was cut: its client took nothing for %g s", self._stall_s)
        finally:
            for task in (pump, watch, heart):
                task.cancel()
            await asyncio.gather(pump, watch, heart, return_exceptions=True)
            await self._events.aclose()
            self._on_close()

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for data in self._events:
                    await self._send(send, data)
            last = self._last()
        except Stalled:
            raise
        except RequestError as error:
            await self._fail(error, scope, receive, send)
        except TimeoutError:
            await self._fail(self._on_timeout(), scope, receive, send)
        except Exception:
            log.exception("a stream broke")
            await self._fail(self._on_defect(), scope, receive, send)
        else:
            self._on_end(None)  # a client that has the last event may leave at once
            await self._unstalled(send, {"type": "http.response.body", "body": last})

    async def _fail(self, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
        self._on_end(error)
        if not self._started:
            response = error_response(error)
            response.headers.update(self._said)
            await response(scope, receive, send)
            return
        # Returning without a last body message makes the server cut the connection.
        await self._send(send, self._failure(error))

    async def _send(self, send: Send, data: bytes) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await self._unstalled(send, self._head())
        message = {"type": "http.response.body", "body": data, "more_body": True}
        await self._unstalled(send, message)

    async def _unstalled(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await send(message)
        except TimeoutError:
            raise Stalled from None

    def _head(self) -> Message:
        return {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        while True:
            silent_s = loop.time() - self._last_sent_s
            if silent_s >= self._keep_alive_s:
                await self._send(send, _KEEP_ALIVE)
                silent_s = 0.0
            await asyncio.sleep(self._keep_alive_s - silent_s)


async def unless_disconnected(receive: Receive, work: Awaitable[object]) -> bool:
    """Do the work; cancel it when the client leaves. Tells whether it was finished."""
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
