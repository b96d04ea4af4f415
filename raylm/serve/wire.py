"""What clients send, strictly typed: OpenAI's completions and chat, with few extensions.

A field that would change the answer and that raylm cannot honour is refused by name; one that
is not known is refused with the nearest name. Fields that change nothing about the answer are
accepted: `user`, `metadata`, `store`, `service_tier`, `safety_identifier`,
`prompt_cache_key`. Beyond OpenAI, under the names that vLLM has for them: `top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `ignore_eos`, `prompt_logprobs`, `guided_json`,
`guided_regex`, `guided_grammar`; and `priority`, of which higher goes first.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, FailFast, Field, model_validator

from raylm.serve.asked import Asked, clash
from raylm.serve.messages import AskedChoice, Message, Tool, ToolChoice, read_tool_choice
from raylm.serve.strict import NOTHING, Wire, as_tuple, is_list
from raylm.serve.structure import Structured

MAX_PRIORITY = 100
MAX_MESSAGES = 4096
"""In one conversation: many of no length would keep the gateway busy that has others to serve."""


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=256)]


def _stop_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenKey = Annotated[str, Field(pattern="^(0|[1-9][0-9]*)$")]
_Biases = Annotated[
    dict[_TokenKey, _Bias], Field(json_schema_extra={"additionalProperties": False})
]


def _bias_pairs(value: Any) -> Any:
    """OpenAI's map from token ids, which JSON makes strings, to what is added to their logits."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and biases")
    pairs = []
    for token, bias in value.items():
        if not (token.isdecimal() and token.isascii() and token == str(int(token[:20]))):
            raise ValueError(f"has the key {token!r}; keys are token ids")
        pairs.append((int(token), bias))
    return tuple(pairs)


class Generation(Asked, Structured):
    """What completions and chat share."""

    unsupported: ClassVar = {
        "functions": NOTHING,
        "function_call": (None, "none", "auto"),
        "best_of": (None, 1),
        "suffix": NOTHING,
        "modalities": (None, ["text"]),
        "audio": NOTHING,
        "prediction": NOTHING,
        "reasoning_effort": NOTHING,
        "verbosity": NOTHING,
        "web_search_options": (None,),
    }
    ignored: ClassVar = frozenset(
        {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    )

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        tuple[_Stop, ...],
        FailFast(),
        BeforeValidator(_stop_list, json_schema_input_type=_Stop | list[_Stop] | None),
    ] = ()
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    logit_bias: Annotated[
        tuple[tuple[int, _Bias], ...],
        BeforeValidator(_bias_pairs, json_schema_input_type=_Biases | None),
    ] = ()
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def include_usage(self) -> bool:
        """A last event of the stream with the token counts is wanted."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise clash("stream_options", "'stream_options' needs 'stream': true")
        return self


Prompt = str | tuple[int, ...]
_TokenIds = Annotated[list[int], Field(min_length=1)]


def prompt_list(value: Any) -> Any:
    """A string, token ids, or a list of either, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if not is_list(value) or not value:
        raise ValueError("must be a string, an array of token ids, or an array of either")
    if isinstance(value[0], int):
        value = [value]
    prompts: list[Prompt] = []
    for prompt in value:
        if isinstance(prompt, str):
            prompts.append(prompt)
        elif is_list(prompt) and prompt and all(type(token) is int for token in prompt):
            prompts.append(tuple(prompt))
        else:
            raise ValueError("must hold strings, or non-empty arrays of token ids")
    return tuple(prompts)


PromptList = Annotated[
    tuple[Any, ...],
    BeforeValidator(
        prompt_list,
        json_schema_input_type=str
        | _TokenIds
        | Annotated[list[str | _TokenIds], Field(min_length=1)],
    ),
]


class CompletionBody(Generation):
    """POST /v1/completions."""

    prompt: PromptList
    max_tokens: int | None = Field(None, ge=0)
    """0: nothing but the logprobs of the prompt."""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    prompt_logprobs: int | None = Field(None, ge=0)


def message_list(value: Any) -> Any:
    """A conversation: one message at least."""
    if not is_list(value) or not value:
        raise ValueError("must be a non-empty array of messages")
    if len(value) > MAX_MESSAGES:
        raise ValueError(f"has {len(value)} messages, and at most {MAX_MESSAGES} are taken")
    return tuple(value)


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    unsupported: ClassVar = {**Generation.unsupported, "prompt_logprobs": (None,)}

    messages: Annotated[
        tuple[Message, ...],
        FailFast(),
        BeforeValidator(
            message_list,
            json_schema_input_type=Annotated[
                list[Message], Field(min_length=1, max_length=MAX_MESSAGES)
            ],
        ),
    ]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: Annotated[
        tuple[Tool, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Tool] | None)
    ] = ()
    tool_choice: Annotated[
        ToolChoice | None, BeforeValidator(read_tool_choice, json_schema_input_type=AskedChoice)
    ] = None
    parallel_tool_calls: bool | None = None
