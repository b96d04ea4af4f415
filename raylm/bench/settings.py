"""Settings: what is asked of whom, how often and how long; saved with what it came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raylm.artifact import hash_file
from raylm.bench.arrivals import TraceEntry
from raylm.bench.level import Quota
from raylm.bench.prompts import Asked, Prompts, read_prompts, synthetic, synthetic_text
from raylm.errors import ConfigError

Endpoint = Literal["completions", "chat"]
Loop = Literal["rate", "concurrency", "trace"]
_PATHS = {"completions": "completions", "chat": "chat/completions"}
_WARMUP = 10
"""Requests before the measured ones of an open loop."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what is sent. Keys, and the values of headers, are not in it."""

    url: str
    model: str
    endpoint: Endpoint
    loop: Loop
    levels: tuple[float, ...]
    """Requests a second of an open loop, clients of a closed one, one nought for a trace."""
    burstiness: float
    trace: str | None
    requests: int | None
    duration_s: float | None
    warmup: int | None
    """Requests before the measured ones; None: one for each client, 10 in an open loop, none
    before a trace."""
    prompts: str | None
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool
    temperature: float
    seed: int
    timeout_s: float
    max_time_s: float
    max_in_flight: int
    max_requests: int
    headers: tuple[str, ...] = ()
    """Names of the headers that were added."""
    file_sha256: str | None = None
    """Of the file of the trace or the prompts, whatever its name."""

    @property
    def path(self) -> str:
        """Below the URL."""
        return _PATHS[self.endpoint]


def digest_of(path: Path, option: str) -> str:
    """SHA-256 of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return hash_file(path)
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error}", code="bench-file") from error


def check(settings: Settings, trace: Sequence[TraceEntry]) -> None:
    """Whether the settings make sense together; before anything is sent.

    Raises:
        ConfigError: they do not.
    """
    if len(set(settings.levels)) < len(settings.levels):
        raise ConfigError(f"--{settings.loop}: a level is given twice", code="bench-load")
    if settings.loop == "concurrency" and max(settings.levels) > settings.max_in_flight:
        raise ConfigError(
            f"--concurrency {max(settings.levels):g} is above --max-in-flight "
            f"{settings.max_in_flight}",
            code="bench-bounds",
            hint=f"--max-in-flight {max(settings.levels):g}",
        )
    for level in settings.levels:
        quota = quota_of(settings, level, len(trace))
        if settings.loop == "trace" and (quota.requests or 0) < 1:
            raise ConfigError(
                f"--warmup {quota.warmup} leaves nothing of the {len(trace)} requests of the trace",
                code="bench-load",
            )
        wanted: float = quota.warmup + (quota.requests or 0)
        if quota.duration_s is not None and settings.loop == "rate":
            wanted += level * quota.duration_s
        if wanted > settings.max_requests:
            raise ConfigError(
                f"{wanted:,.0f} requests are above --max-requests {settings.max_requests:,}",
                code="bench-bounds",
                hint="every request's record is kept in memory; raise it if there is enough",
            )


def quota_of(settings: Settings, level: float, num_in_trace: int) -> Quota:
    """Which requests of a level are measured."""
    default = {"rate": _WARMUP, "concurrency": int(level), "trace": 0}[settings.loop]
    warmup = default if settings.warmup is None else settings.warmup
    if settings.loop == "trace":
        return Quota(warmup, num_in_trace - warmup, None)
    return Quota(warmup, settings.requests, settings.duration_s)


class Bodies:
    """Request bodies by index, as bytes; every level and every server gets the same ones."""

    def __init__(self, settings: Settings, trace: Sequence[TraceEntry] = ()) -> None:
        self._settings, self._trace = settings, trace
        self._prompts: Prompts = (
            synthetic(settings.seed, settings.prompt_tokens)
            if settings.prompts is None
            else read_prompts(Path(settings.prompts))
        )
        self(0)  # prompts that do not fit the endpoint are told at once

    def __call__(self, index: int) -> bytes:
        """The body of one request."""
        settings = self._settings
        asked, max_tokens = self._asked(index)
        body: dict[str, Any] = {
            "model": settings.model,
            **_shaped(asked, settings.endpoint),
            "max_tokens": max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.ignore_eos:
            body["ignore_eos"] = True
        return json.dumps(body).encode()

    def _asked(self, index: int) -> tuple[Asked, int]:
        if not self._trace:
            return self._prompts(index), self._settings.max_tokens
        entry = self._trace[index]
        if entry.prompt is not None:
            return {"prompt": entry.prompt}, entry.max_tokens
        assert entry.prompt_tokens is not None
        text = synthetic_text(self._settings.seed, index, entry.prompt_tokens)
        return {"prompt": text}, entry.max_tokens


def _shaped(asked: Asked, endpoint: Endpoint) -> Asked:
    if endpoint == "completions" and "messages" in asked:
        raise ConfigError("--prompts: messages are for --endpoint chat", code="bench-prompts")
    if endpoint == "chat" and "prompt" in asked:
        if not isinstance(asked["prompt"], str):
            raise ConfigError("--prompts: token ids are for --endpoint completions",
                              code="bench-prompts")  # fmt: skip
        return {"messages": [{"role": "user", "content": asked["prompt"]}]}
    return asked
