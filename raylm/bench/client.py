"""Client: sends one request, reads its stream, and writes down when what came.

Classes of failure:

    connect          no connection, or one that ended before an answer began
    timeout          not at its end within the time for a request
    refused 429/503  the server sheds load; it is counted and not sent again
    http NNN         any other status than 200
    broken stream    an answer that began and was not brought to its end: cut, an error event,
                     something that is no event, or no finish_reason and [DONE]
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from raylm.bench.record import Draft
from raylm.errors import ConfigError, HostError, MissingExtra, RequestError

if TYPE_CHECKING:
    import aiohttp

clock = time.perf_counter
MAX_EVENT_BYTES = 2**20
_KEEP_ALIVE_S = 2.0
"""How long a connection waits for its next request: shorter than servers do, which would
otherwise close it under the request."""
_AFTER_DONE_S = 1.0
_REFUSED = (429, 503)
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")


class Client:
    """One HTTP client with as many connections as there are requests; inside `async with`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise MissingExtra("aiohttp", extra="bench") from error
        self._aiohttp = aiohttp
        self._too_long = aiohttp.http_exceptions.HttpProcessingError
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Client:
        self._session = self._aiohttp.ClientSession(
            headers=self._headers,
            connector=self._aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=self._aiohttp.ClientTimeout(total=None),
            # One line of a stream may be twice this.
            read_bufsize=MAX_EVENT_BYTES // 2,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def ask(self, path: str, body: bytes, draft: Draft) -> None:
        """Send a request, once, and read its answer; whatever happens is in the draft."""
        draft.sent_at_s = clock() - draft.begun_s
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask(path, body, draft)
        except TimeoutError:
            draft.fail("timeout", f"no end within {self._timeout_s:g} s")
        except (self._aiohttp.ClientConnectionError, OSError) as error:
            draft.fail(draft.failure or "connect", error or type(error).__name__)
        except (self._aiohttp.ClientError, self._too_long, ValueError) as error:
            draft.fail("broken stream", error)

    async def _ask(self, path: str, body: bytes, draft: Draft) -> None:
        posted = self._session.post(f"{self._url}/{path}", data=body, allow_redirects=False)
        async with posted as response:
            if response.status != 200:
                kind = "refused" if response.status in _REFUSED else "http"
                said = b""
                with suppress(self._aiohttp.ClientError):
                    said = await response.content.read(2000)
                draft.fail(f"{kind} {response.status}", said.decode("utf-8", "replace"))
                return
            draft.fail("broken stream", "the stream ended without [DONE]")
            is_finished = False
            async with aclosing(events(response.content)) as stream:
                async for data in stream:
                    now_s = clock() - draft.begun_s
                    if data == b"[DONE]":
                        draft.ended_at_s = now_s
                        break
                    is_finished = take(data, draft, now_s) or is_finished
            if draft.ended_at_s is None:
                return
            if not is_finished:
                draft.fail("broken stream", "[DONE] without a finish_reason")
                return
            draft.failure = draft.detail = None
            # The connection can be used again once its body has been read.
            with suppress(TimeoutError, self._aiohttp.ClientError):
                async with asyncio.timeout(_AFTER_DONE_S):
                    await response.content.read()

    async def only_model(self) -> str:
        """The name of the one model that is served.

        Raises:
            HostError: nothing answers. RequestError: it is refused.
            ConfigError: several are served, or none.
        """
        try:
            async with asyncio.timeout(min(self._timeout_s, 30.0)):
                async with self._session.get(f"{self._url}/models") as response:
                    status, said = response.status, await response.text()
        except (self._aiohttp.ClientError, OSError) as error:
            raise HostError(
                f"nothing answers at {self._url}: {error or type(error).__name__}",
                code="endpoint-unreachable",
                hint="--url is the base that OpenAI clients take, with /v1 where there is one",
            ) from error
        if status != 200:
            raise RequestError(
                f"{self._url}/models answers {status}: {said[:200]}",
                code="request-failed",
                status=status,
                hint="--key-file FILE" if status in (401, 403) else "--model NAME",
            )
        try:
            roots = {str(m["id"]): m.get("root") for m in json.loads(said)["data"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{self._url}/models is no list of models", code="request-failed",
                hint="--model NAME",
            ) from error  # fmt: skip
        # One whose root is listed too is a second name of it.
        served = [name for name, root in roots.items() if root == name or root not in roots]
        if len(served) != 1:
            raise ConfigError(
                f"--model is needed: {self._url} serves {', '.join(served) or 'nothing'}",
                code="bench-model",
            )
        return served[0]


async def events(lines: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event; other fields and comments are passed over."""
    data: list[bytes] = []
    async for line in lines:
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []


def take(data: bytes, draft: Draft, now_s: float) -> bool:
    """Write down what an event brings; returns whether it has a finish_reason.

    Raises:
        ValueError: it is an error, or no event of this protocol.
    """
    try:
        chunk = json.loads(data)
        choices = chunk.get("choices") or []
        if any(_text(choice) for choice in choices):
            draft.chunks_at_s.append(now_s)
        if usage := chunk.get("usage"):
            draft.prompt_tokens = usage.get("prompt_tokens")
            draft.completion_tokens = usage.get("completion_tokens")
        is_finished = any(choice.get("finish_reason") for choice in choices)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of a completion: {data[:100]!r}") from error
    if chunk.get("error"):
        raise ValueError(f"an error event: {json.dumps(chunk['error'])}")
    return is_finished


def _text(choice: dict[str, Any]) -> Any:
    # The first event of a chat only names its role, and is no sign of the model.
    delta = choice.get("delta") or {}
    return choice.get("text") or next((delta[x] for x in _TEXT_FIELDS if delta.get(x)), None)
