"""What clients send, strictly typed: OpenAI's completions and chat, with few extensions.

A field that would change the answer and that raylm cannot honour is refused by name; one that
is not known is refused with the nearest name. Fields that change nothing about the answer are
accepted: `user`, `metadata`, `store`, `service_tier`, `safety_identifier`,
`prompt_cache_key`. Beyond OpenAI: `top_k`, `repetition_penalty`, `ignore_eos`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from raylm.errors import RequestError, nearest

_Neutral = Callable[[Any], bool]


def _empty(value: Any) -> bool:
    return value in (None, [], {}, "")


_UNSUPPORTED: dict[str, _Neutral] = {
    "tools": _empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "parallel_tool_calls": lambda value: value is None or isinstance(value, bool),
    "functions": _empty,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": lambda value: value in (None, {"type": "text"}),
    "logit_bias": _empty,
    "best_of": lambda value: value in (None, 1) and value is not True,
    "suffix": _empty,
    "modalities": lambda value: value in (None, ["text"]),
    "audio": _empty,
    "prediction": _empty,
    "reasoning_effort": _empty,
    "verbosity": _empty,
    "web_search_options": lambda value: value is None,
    "min_tokens": lambda value: value in (None, 0),
    "min_p": lambda value: value in (None, 0),
    "prompt_logprobs": lambda value: value is None,
    "guided_json": _empty,
    "guided_regex": _empty,
}
"""Fields that are known and not supported, each with the values that ask for nothing."""


class Wire(BaseModel):
    """A strict, frozen piece of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool = False


def _stop_list(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value) if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


class Generation(Wire):
    """What completions and chat share."""

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
        BeforeValidator(_stop_list),
    ] = ()
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
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

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Validate a JSON object.

        Raises:
            RequestError: 400, naming the field.
        """
        kept = {}
        for name, value in fields.items():
            neutral = None if name in cls.model_fields else _UNSUPPORTED.get(name)
            if neutral is None:
                kept[name] = value
            elif not neutral(value):
                raise RequestError(
                    f"{name!r} is not supported by this server",
                    code="unsupported-parameter",
                    param=name,
                )
        try:
            body = cls.model_validate(kept)
        except ValidationError as error:
            raise _first_problem(error, cls) from None
        if body.stream_options is not None and not body.stream:
            raise RequestError(
                "'stream_options' needs 'stream': true",
                code="invalid-parameter",
                param="stream_options",
            )
        return body


def _first_problem(error: ValidationError, model: type[Generation]) -> RequestError:
    problem = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = nearest(param, model.model_fields) if len(problem["loc"]) == 1 else None
        return RequestError(
            f"unknown field {param!r}" + (f"; did you mean {close!r}?" if close else ""),
            code="unknown-parameter",
            param=param,
        )
    if problem["type"] == "missing":
        return RequestError(f"{param!r} is missing", code="missing-parameter", param=param)
    message = problem["msg"].removeprefix("Value error, ")
    return RequestError(f"{param!r}: {message}", code="invalid-parameter", param=param)


Prompt = str | tuple[int, ...]


def _prompt_list(value: Any) -> Any:
    """A string, token ids, or a list of either, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if not _is_list(value) or not value:
        raise ValueError("must be a string, an array of token ids, or an array of either")
    if isinstance(value[0], int):
        value = [value]
    prompts: list[Prompt] = []
    for prompt in value:
        if isinstance(prompt, str):
            prompts.append(prompt)
        elif _is_list(prompt) and prompt and all(type(token) is int for token in prompt):
            prompts.append(tuple(prompt))
        else:
            raise ValueError("must hold strings, or non-empty arrays of token ids")
    return tuple(prompts)


class CompletionBody(Generation):
    """POST /v1/completions."""

    prompt: Annotated[tuple[Any, ...], BeforeValidator(_prompt_list)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)


def _text_of(value: Any) -> Any:
    """A message's content as one string; parts are joined as OpenAI joins them."""
    if value is None or isinstance(value, str):
        return value or ""
    if not _is_list(value):
        raise ValueError("must be a string or an array of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
            raise ValueError(f"has a part of type {kind!r}; only text parts are supported")
        texts.append(part["text"])
    return "".join(texts)


def _only_empty(value: Any) -> Any:
    if not _empty(value):
        raise ValueError("is not supported by this server")
    return None


class Message(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)] = ""
    name: str | None = Field(None, max_length=64)
    refusal: Annotated[None, BeforeValidator(_only_empty)] = None
    audio: Annotated[None, BeforeValidator(_only_empty)] = None
    tool_calls: Annotated[None, BeforeValidator(_only_empty)] = None
    function_call: Annotated[None, BeforeValidator(_only_empty)] = None

    def for_template(self) -> dict[str, str]:
        """What chat templates know of a message."""
        shown = {"role": self.role, "content": self.content}
        return shown if self.name is None else shown | {"name": self.name}


def _messages(value: Any) -> Any:
    if not _is_list(value) or not value:
        raise ValueError("must be a non-empty array of messages")
    return tuple(value)


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[Message, ...], BeforeValidator(_messages)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
