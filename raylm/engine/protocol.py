"""What every engine promises, and the values that cross its border.

An engine owns one loaded model and turns requests into chunks. It knows nothing of HTTP,
tenants' keys or Ray. Everything here is a plain frozen value, cheap to pickle, so that a
gateway in another process can hold it, and hand an interrupted answer to another replica:
prompt and already emitted tokens travel apart, and sampling is keyed by (seed, position).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 is off."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    num_logprobs: int | None = None
    """None: no logprobs; 0: of the chosen token; k: also of the k likeliest."""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make. Token ids are those of the model's own tokenizer."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    emitted_ids: tuple[int, ...] = ()
    """Tokens of the answer that the client already has; the answer goes on after them."""
    tenant: str = "default"
    cache_salt: str = ""
    priority: int = 0
    """Higher goes first."""
    deadline_s: float | None = None
    """Unix time after which nobody waits for the answer any more."""
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of one emitted token, with the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    `position` is the index, within the answer, of the first token of `token_ids`; a chunk
    without tokens (the rest of the text, or only the finish reason) has the index that the
    next token would have. `text` never splits a character and never contains a stop string.
    """

    request_id: str
    position: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine is doing at this moment. Counters are since it was loaded."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    steps_total: int = 0
    cancelled_total: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do with the model it has loaded."""

    engine: str
    max_context_tokens: int
    """Prompt and answer together."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    features: frozenset[str] = field(default_factory=frozenset)
    """Of: generate, logprobs, continue, cancel."""
    weights: str = "f32"
    """Stored precision of the weights, for people to read: f32, bf16, int8."""


class Engine(Protocol):
    """One loaded model. Made by a `load(folder, config)` named in `ENGINES`."""

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Stream an answer. Closing the iterator early cancels the request.

        Raises:
            RequestError: the request cannot be served (prompt too long, a parameter out
                of range, queue full); raised before the first chunk.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a request; its slot is free within one step. Unknown ids are ignored."""
        ...

    def stats(self) -> Stats:
        """Counters and gauges; cheap, callable from any thread."""
        ...

    def capabilities(self) -> Capabilities:
        """What this engine can do; fixed once loaded."""
        ...

    def health(self) -> None:
        """Return if the engine can work.

        Raises:
            RaylmError: it cannot, with the reason.
        """
        ...

    def close(self) -> None:
        """Stop the engine and free the model. What is running ends as cancelled."""
        ...
