"""Many streams at once through the official client, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai


@dataclass(slots=True)
class Stream:
    """One streamed completion as its client saw it; times are on the monotonic clock."""

    prompt: str
    text: str = ""
    finish_reason: str | None = None
    num_tokens: int | None = None
    """As the usage event says."""
    error: str | None = None
    times_s: list[float] = field(default_factory=list)
    """When each piece of text came."""

    @property
    def stall_s(self) -> float:
        """The longest wait between two pieces."""
        gaps = [b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False)]
        return max(gaps, default=0.0)


async def _read(
    client: openai.AsyncOpenAI, stream: Stream, begun: asyncio.Event, request: dict[str, Any]
) -> None:
    try:
        events = await client.completions.create(
            **request, prompt=stream.prompt, stream=True, stream_options={"include_usage": True}
        )
        async for event in events:
            stream.times_s.append(time.monotonic())
            begun.set()
            if event.usage is not None:
                stream.num_tokens = event.usage.completion_tokens
            for choice in event.choices:
                stream.text += choice.text
                stream.finish_reason = choice.finish_reason or stream.finish_reason
    except openai.APIError as error:
        stream.error = f"{type(error).__name__} {error.code}"
    except Exception as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        begun.set()


async def run_streams(
    url: str,
    key: str,
    prompts: Sequence[str],
    request: dict[str, Any],
    *,
    fault: Callable[[], None] = lambda: None,
    timeout_s: float = 180.0,
) -> list[Stream]:
    """Stream all prompts at once; `fault` happens when each has had its first piece."""
    streams = [Stream(prompt) for prompt in prompts]
    begun = [asyncio.Event() for _ in prompts]
    async with (
        openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout_s) as client,
        asyncio.timeout(timeout_s),
        asyncio.TaskGroup() as group,
    ):
        for stream, event in zip(streams, begun, strict=True):
            group.create_task(_read(client, stream, event, request))
        for event in begun:
            await event.wait()
        await asyncio.to_thread(fault)
    return streams
