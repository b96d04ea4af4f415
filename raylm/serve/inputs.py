"""Texts to embed or classify: what a request holds of them, and the token ids that engines take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

from raylm.config.serve import LimitsConfig
from raylm.engine.encode import EncodeRequest
from raylm.engine.protocol import Capabilities
from raylm.errors import RequestError
from raylm.serve.asked import Asked
from raylm.serve.catalog import Entry
from raylm.serve.reply import Terms
from raylm.serve.wire import PromptList

MAX_PARALLEL = 32
"""Texts of one request that engines work on, or that wait for their turn, at a time."""

T = TypeVar("T", bound=EncodeRequest)
R = TypeVar("R")


class InputBody(Asked):
    """One text or several, each a string or token ids. `truncate` cuts what is too long."""

    ignored: ClassVar = frozenset({"user"})

    input: PromptList
    truncate: bool | None = None
    user: str | None = None


async def input_ids(
    body: InputBody, entry: Entry, capabilities: Capabilities, limits: LimitsConfig
) -> tuple[list[tuple[int, ...]], int]:
    """Token ids of every text, and how many texts were cut; token ids pass as they are.

    Raises:
        RequestError: 400, too many texts or tokens.
    """
    if len(body.input) > limits.max_inputs:
        raise _bad(f"{len(body.input)} inputs are more than {limits.max_inputs}")
    limit = input_limit(capabilities, limits)
    found: list[tuple[int, ...]] = []
    num_tokens = num_cut = 0
    for index, text in enumerate(body.input):
        await asyncio.sleep(0)  # a long list must not hold up the streams of other calls
        ids = text
        if isinstance(text, str):
            encode = partial(
                entry.tokenizer.encode,
                text,
                add_special_tokens=True,
                param="input",
                end_id=capabilities.end_of_input_id,
            )
            ids = await encode(limit_tokens=None if body.truncate else limit)
        if body.truncate and len(ids) > limit:
            num_cut += 1
            ids = text[:limit]
            if isinstance(text, str):
                ids = await encode(limit_tokens=limit, truncate=True)
        _check(ids, index, limit, capabilities.vocab_size)
        num_tokens += len(ids)
        if num_tokens > limits.max_input_tokens:
            raise _bad(f"all inputs together have more than {limits.max_input_tokens} tokens")
        found.append(ids)
    return found, num_cut


def input_limit(capabilities: Capabilities, limits: LimitsConfig) -> int:
    """The most tokens one text may have."""
    most = limits.max_prompt_tokens
    limit = capabilities.max_context_tokens
    return limit if most is None else min(limit, most)


async def each(work: Callable[[T], Awaitable[R]], requests: Sequence[T], terms: Terms) -> list[R]:
    """The result of every request when it is its turn, in order; the first failure ends the
    others."""
    slots = asyncio.Semaphore(MAX_PARALLEL)

    async def one(request: T) -> R:
        async with slots, terms.turn(len(request.prompt_ids)):
            return await work(request)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _check(ids: tuple[int, ...], index: int, limit: int, vocab_size: int) -> None:
    if not ids:
        raise _bad(f"input {index} has no tokens")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise _bad(f"input {index}: token ids are 0 to {vocab_size - 1}")
    if len(ids) > limit:
        raise RequestError(
            f"input {index} has {len(ids)} tokens, and at most {limit} fit",
            code="context-length-exceeded",
            param="input",
            hint="`truncate`: true takes the first ones",
        )


def _bad(message: str) -> RequestError:
    return RequestError(message, code="invalid-parameter", param="input")
