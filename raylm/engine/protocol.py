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

from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest

FinishReason = Literal["stop", "length", "cancelled"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an answer must look like, as source; engines compile it.

    `source` is the text of a JSON schema, a regular expression that the whole answer matches,
    or a grammar in llguidance's dialect of Lark; `json_object` needs none.
    """

    kind: GrammarKind
    source: str = ""
    param: str = "response_format"
    """The field of the request that it came from; refusals name it."""


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
    num_prompt_logprobs: int | None = None
    """The same for the prompt's tokens; needs the feature `prompt_logprobs`."""
    ignore_eos: bool = False
    min_p: float = 0.0
    """Least probability of a token, as a part of the likeliest one's (arXiv:2407.01082)."""
    min_tokens: int = 0
    """Neither an end token nor a stop string ends the answer before."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""
    grammar: Grammar | None = None


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
    """What requests of one salt have in common at their beginning is computed once; requests of
    different salts share nothing, so that none can tell by its speed what another has asked."""
    priority: int = 0
    """Higher goes first."""
    deadline_s: float | None = None
    """Unix time after which nobody waits for the answer any more."""
    variant: str | None = None
    digest: str = ""
    """Of the weights that began the answer, by which alone it may go on; empty: by any."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of one token, with the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    `position` is the index, within the answer, of the first token of `token_ids`; a chunk
    without tokens (the rest of the text, or only the finish reason) has the index that the
    next token would have. `text` never splits a character and never contains a stop string.

    The first chunk that an engine sends for a request says how many tokens of its prompt were in
    the engine's cache already, and carries the prompt's logprobs where they were asked for: one
    entry a token, None for the first, which nothing comes before. An answer that is continued
    has had its prompt's logprobs.
    """

    request_id: str
    position: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    digest: str = ""
    """Of the weights that it is from: on the first chunk that a replica sends, if they have one."""


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
    prefix_query_tokens_total: int = 0
    """Tokens that were looked up in the prefix cache, and those of them that were there."""
    prefix_hit_tokens_total: int = 0
    guessed_tokens_total: int = 0
    """Tokens that speculation guessed, and those of them that were right."""
    confirmed_tokens_total: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do with the model it has loaded."""

    engine: str
    max_context_tokens: int
    """Prompt and answer together; the prompt alone where `max_answer_tokens` is set."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    features: frozenset[str] = field(default_factory=lambda: frozenset({"generate"}))
    """Of: generate, logprobs, prompt_logprobs, continue, cancel, grammar, embed, classify."""
    weights: str = "f32"
    """Stored precision of the weights, for people to read: f32, f16, bf16, int8, int4."""
    max_answer_tokens: int | None = None
    """Of an encoder-decoder, whose answer takes no room from the prompt; None: they share it."""
    end_of_input_id: int | None = None
    """Of models with an encoder: the token that ends its input in training, which a text needs
    where the tokenizer puts no special tokens around it by itself."""
    poolings: tuple[str, ...] = ()
    """How it can make one vector of a text, the model's own way first."""
    embedding_size: int = 0
    """Numbers in that vector."""
    tokens_per_cpu_s: float = 0.0
    """Decoding a few sequences, in processor time, as measured on loading; 0: not measured."""

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for an answer."""
        return self.max_context_tokens - (self.max_answer_tokens is None)

    def answer_room(self, num_prompt_tokens: int) -> int:
        """The longest answer that fits after a prompt, in tokens."""
        if self.max_answer_tokens is not None:
            return self.max_answer_tokens
        return self.max_context_tokens - num_prompt_tokens


class Engine(Protocol):
    """One loaded model. Made by a `load(folder, config)` named in `ENGINES`.

    What `capabilities()` does not name is refused with a RequestError.
    """

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Stream an answer. Closing the iterator early cancels the request.

        Raises:
            RequestError: the request cannot be served (prompt too long, a parameter out
                of range, queue full); raised before the first chunk.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector. Cancelling the task cancels the request.

        Raises:
            RequestError: the request cannot be served.
        """
        ...

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class of the model for a text; else as `embed`."""
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
