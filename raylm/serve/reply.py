"""Reply: what calls that are answered in one piece give back, and on what terms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from raylm.config.serve import LimitsConfig


@dataclass(frozen=True, slots=True)
class Terms:
    """What a reply is held to."""

    call_id: str
    tenant: str
    limits: LimitsConfig
    deadline_s: float
    """Unix time."""
    count: Callable[[int], Awaitable[None]]
    """Counts the call, once, before it is worked on: engines will read so many tokens for it.
    RequestError: its tenant's limits do not allow it."""
    turn: Callable[[int], AbstractAsyncContextManager[None]]
    """The turn of a text of so many tokens, in which an engine reads it."""
    priority: int = 0
    """In the engines; higher goes first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response's body as JSON text, and the tokens that an engine read for it."""

    body: str
    num_tokens: int = 0
    num_cut: int = 0
    """Texts that were too long and of which it read the beginning."""
