"""Arrivals: when requests are due, whatever becomes of those before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raylm.errors import ConfigError


def gamma_arrivals(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Times in seconds without end, `rate` a second on average.

    The gaps are gamma distributed with shape `burstiness`: 1 is a Poisson process, less comes in
    bursts, more is more even (the parameter of `vllm bench serve`).
    """
    random = np.random.default_rng(seed)
    at_s = 0.0
    while True:
        for gap in random.gamma(burstiness, 1 / (rate * burstiness), size=256):
            at_s += float(gap)
            yield at_s


class TraceEntry(BaseModel):
    """One line of a trace: when, what, and how long an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: float = Field(ge=0, allow_inf_nan=False)
    prompt: str | None = None
    prompt_tokens: int | None = Field(None, ge=1)
    max_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _has_one_prompt(self) -> TraceEntry:
        if (self.prompt is None) == (self.prompt_tokens is None):
            raise ValueError("one of prompt and prompt_tokens is needed")
        return self


def read_trace(path: Path) -> list[TraceEntry]:
    """The entries of a trace file (JSON lines), in the order of time.

    Raises:
        ConfigError: it cannot be read, has no entry, or a line is not one.
    """
    entries = []
    for number, line in enumerate(read_lines(path, "--trace"), 1):
        try:
            entries.append(TraceEntry.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{path}: entry {number}: {f'{where}: ' if where else ''}{first['msg']}",
                code="bench-trace",
                hint='{"at_s": 0.5, "prompt_tokens": 128, "max_tokens": 64}',
            ) from error
    return sorted(entries, key=lambda entry: entry.at_s)


def read_lines(path: Path, option: str) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        ConfigError: it cannot be read, or there is none.
    """
    try:
        lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: cannot read {path}: {error}", code="bench-file") from error
    if not lines:
        raise ConfigError(f"{option}: {path} has no line", code="bench-file")
    return lines
