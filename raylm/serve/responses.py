"""POST /v1/responses: OpenAI's Responses, for text and functions, as a chat under other names.

Nothing is stored: a conversation goes on by sending its items again, so `previous_response_id`
and `conversation` are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, FailFast, Field, ValidationError, model_validator

from raylm.errors import RequestError
from raylm.serve.asked import Asked, clash
from raylm.serve.items import MAX_ITEMS, Item, chat_messages, read_items
from raylm.serve.messages import Function, Message, Tool, ToolChoice, ToolName, read_tool_choice
from raylm.serve.strict import NOTHING, Empty, Wire, as_tuple
from raylm.serve.structure import JsonSchema, ResponseFormat
from raylm.serve.wire import MAX_PRIORITY, ChatBody

Logprobs = Literal["message.output_text.logprobs"]
_NAMES = {
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""What chats call otherwise."""


def renamed(error: RequestError) -> RequestError:
    """A chat's refusal, in the words of this call."""
    if error.param in _NAMES:
        error.message = error.message.replace("max_completion_tokens", "max_output_tokens")
        error.param = _NAMES[error.param]
    return error


class FunctionTool(Wire):
    """One of `tools`: what chats wrap into `function`, flat."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> Tool:
        """The tool as chats have it."""
        return Tool(type="function", function=Function(**self.model_dump(exclude={"type"})))


class NamedFunction(Wire):
    """`tool_choice` that wants one function called."""

    type: Literal["function"]
    name: str


AskedChoice = Literal["none", "auto", "required"] | NamedFunction | None
"""`tool_choice` as clients send it."""


def _read_choice(value: Any) -> ToolChoice | None:
    if value is None or value in ("none", "auto", "required"):
        return read_tool_choice(value)
    try:
        return ToolChoice("required", NamedFunction.model_validate(value).name)
    except ValidationError:
        raise ValueError(
            'must be "none", "auto", "required" or {"type": "function", "name": ...}'
        ) from None


class TextFormat(Wire):
    """`text.format`: what chats have as `response_format`, flat."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        given = self.model_fields_set - {"type"}
        if self.type != "json_schema" and given:
            raise ValueError(f"a format of type {self.type!r} has nothing else in it")
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("a json_schema needs 'name' and 'schema'")
        return self

    def for_chat(self) -> ResponseFormat:
        """The format as chats have it."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        schema = self.model_dump(by_alias=True, exclude={"type"})
        return ResponseFormat(type="json_schema", json_schema=JsonSchema.model_validate(schema))


class TextConfig(Wire):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Empty = None


class PlainStream(Wire):
    """`stream_options`: events are not padded."""

    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Asked):
    """POST /v1/responses."""

    unsupported: ClassVar = {
        "previous_response_id": NOTHING,
        "conversation": NOTHING,
        "prompt": NOTHING,
        "background": (None, False),
        "store": (None, False),
        "reasoning": NOTHING,
        "truncation": (None, "disabled"),
        "max_tool_calls": (None,),
        "context_management": NOTHING,
        "moderation": NOTHING,
    }
    ignored: ClassVar = frozenset(
        {"user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    )

    input: Annotated[
        tuple[Item, ...],
        FailFast(),
        BeforeValidator(
            read_items,
            json_schema_input_type=str
            | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)],
        ),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_logprobs: int | None = Field(None, ge=0)
    include: Annotated[
        tuple[Logprobs, ...],
        BeforeValidator(as_tuple, json_schema_input_type=list[Logprobs] | None),
    ] = ()
    text: TextConfig | None = None
    tools: Annotated[
        tuple[FunctionTool, ...],
        BeforeValidator(as_tuple, json_schema_input_type=list[FunctionTool] | None),
    ] = ()
    tool_choice: Annotated[
        ToolChoice | None, BeforeValidator(_read_choice, json_schema_input_type=AskedChoice)
    ] = None
    parallel_tool_calls: bool | None = None
    priority: int | None = Field(None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    stream: bool | None = None
    stream_options: PlainStream | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.top_logprobs is not None and not self.include:
            raise clash(
                "top_logprobs", f"'top_logprobs' needs 'include': {list(get_args(Logprobs))}"
            )
        if self.stream_options is not None and not self.stream:
            raise clash("stream_options", "'stream_options' needs 'stream': true")
        return self

    def for_chat(self) -> ChatBody:
        """The same as a chat."""
        said = [Message(role="system", content=self.instructions)] if self.instructions else []
        form = self.text.format if self.text is not None else None
        return ChatBody.model_validate(
            {
                "model": self.model,
                "messages": said + chat_messages(self.input),
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "seed": self.seed,
                "logprobs": bool(self.include),
                "top_logprobs": self.top_logprobs,
                "response_format": None if form is None else form.for_chat(),
                "tools": [tool.for_chat() for tool in self.tools],
                "tool_choice": self.tool_choice,
                "parallel_tool_calls": self.parallel_tool_calls,
                "stream": self.stream,
            }
        )
