"""What answers look like, for the document of the API; the gateway writes them by hand.

A field that is not always there has a default here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Reason = Literal["stop", "length"]
ChatReason = Literal["stop", "length", "tool_calls"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class Shape(BaseModel):
    """A piece of an answer; it has no other fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Shape):
    """What went wrong; `code` is stable, `param` names the field or header at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Shape):
    """Every failure."""

    error: ErrorDetail


class CachedTokens(Shape):
    """Of a prompt's tokens, those that had been computed before."""

    cached_tokens: int


class Usage(Shape):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Answered(Shape):
    """What completions and chats, whole and streamed, have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class CompletionLogprobs(Shape):
    """Token by token; of a prompt's first token nothing is known."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptToken(Shape):
    """A token of a prompt, or one that could stand in its place."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class CompletionChoice(Shape):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason
    prompt_logprobs: PromptLogprobs = Field(default=[])


class Completion(Answered):
    """POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionPiece(Shape):
    """A piece of an answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None
    prompt_logprobs: PromptLogprobs = Field(default=[])


class CompletionChunk(Answered):
    """An event of a streamed completion."""

    object: Literal["text_completion"]
    choices: list[CompletionPiece]
    usage: Usage | None = None


class ScoredToken(Shape):
    """A token and its logprob."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ScoredToken):
    """A token of an answer, with the likeliest ones in its place."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(Shape):
    """Token by token."""

    content: list[ChatToken]
    refusal: None


class CalledName(Shape):
    """A function, and its arguments as JSON text."""

    name: str
    arguments: str


class ChatCall(Shape):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: CalledName


class ChatCallPiece(ChatCall):
    """The same in a stream, with its place among the calls."""

    index: int


class ChatMessage(Shape):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ChatCall] = Field(default=[])


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatReason


class Chat(Answered):
    """POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Shape):
    """What a piece adds."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[ChatCallPiece] = Field(default=[])


class ChatPiece(Shape):
    """A piece of an answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatReason | None


class ChatChunk(Answered):
    """An event of a streamed chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    usage: Usage | None = None


class TextUsage(Shape):
    """Token counts of calls that make no text."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(Shape):
    """A vector: numbers, or base64 of float32, little endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Shape):
    """POST /v1/embeddings."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: TextUsage


class ClassItem(Shape):
    """The likeliest class of a text, and the probability of each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(Shape):
    """POST /v1/classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassItem]
    usage: TextUsage


class Tokens(Shape):
    """POST /v1/tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Shape):
    """POST /v1/detokenize."""

    prompt: str


class ModelCard(Shape):
    """A model, by one of its names; `root` is the one that says which variant it is."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    variant: str | None
    digest: str | None
    chat: bool


class ModelList(Shape):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Shape):
    """GET /healthz."""

    status: Literal["ok"]


class ModelState(Shape):
    """Engine replicas of a model: those that can work, and those that there should be."""

    replicas_ready: int
    replicas: int


class Ready(Shape):
    """GET /readyz."""

    ready: bool
    models: dict[str, ModelState]
    problems: list[str]


class Document(BaseModel):
    """GET /openapi.json: this document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
