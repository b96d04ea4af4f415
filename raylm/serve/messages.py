"""Messages of a conversation and the tools that it may call, as clients send them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from raylm.serve.strict import Empty, Wire, as_tuple, is_list

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Wire):
    """What a tool does: a name, words for the model, and a JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The arguments' schema; a function without one takes none, as OpenAI has it."""
        if self.parameters is not None:
            return self.parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Wire):
    """One of `tools`."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """What chat templates know of a tool."""
        shown = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": shown}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`tool_choice`; a named function is one that is required."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None


class FunctionName(Wire):
    """The name of a function."""

    name: str


class NamedTool(Wire):
    """`tool_choice` that wants one function called."""

    type: Literal["function"]
    function: FunctionName


AskedChoice = Literal["none", "auto", "required"] | NamedTool | None
"""`tool_choice` as clients send it."""


def read_tool_choice(value: Any) -> ToolChoice | None:
    """Validate `tool_choice`.

    Raises:
        ValueError: it is none of its forms.
    """
    if value is None or isinstance(value, ToolChoice):
        return value
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return ToolChoice(value)  # type: ignore[arg-type]  # one of the three
    try:
        return ToolChoice("required", NamedTool.model_validate(value).function.name)
    except ValidationError:
        raise ValueError(
            'must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
        ) from None


class CalledFunction(Wire):
    """A call's function, with its arguments as JSON text."""

    name: str = Field(max_length=256)
    arguments: str

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> Self:
        self.parsed_arguments()
        return self

    def parsed_arguments(self) -> dict[str, Any]:
        """The arguments as templates want them.

        Raises:
            ValueError: they are no JSON object.
        """
        try:
            found = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("has arguments that are no JSON object")
        return found


class Call(Wire):
    """A call that the assistant made, one of a message's `tool_calls`."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """What chat templates know of a call."""
        function = {
            "name": self.function.name,
            "arguments": self.function.parsed_arguments(),
        }
        return {"id": self.id, "type": "function", "function": function}


class TextPart(Wire):
    """A piece of a message's text, as the document of the API has it."""

    type: Literal["text"]
    text: str


def _text_of(value: Any) -> Any:
    """A message's content as one string; parts are joined as OpenAI joins them."""
    if value is None or isinstance(value, str):
        return value or ""
    if not is_list(value):
        raise ValueError("must be a string or an array of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
            raise ValueError(f"has a part of type {kind!r}; only text parts are supported")
        texts.append(part["text"])
    return "".join(texts)


class Message(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str, BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart] | None)
    ] = ""
    name: str | None = Field(None, max_length=64)
    tool_calls: Annotated[
        tuple[Call, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Call] | None)
    ] = ()
    tool_call_id: str | None = Field(None, max_length=256)
    refusal: Empty = None
    audio: Empty = None
    function_call: Empty = None

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} has tool_calls")
        if (self.role == "tool") is not (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to messages of role 'tool', and to all of them")
        return self

    @property
    def is_about_tools(self) -> bool:
        """A call, or what came of one."""
        return self.role == "tool" or bool(self.tool_calls)

    def for_template(self) -> dict[str, Any]:
        """What chat templates know of a message."""
        shown: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            shown["name"] = self.name
        if self.tool_calls:
            shown["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            shown["tool_call_id"] = self.tool_call_id
        return shown
