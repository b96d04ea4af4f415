"""Items of a Responses conversation, and the messages of a chat that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from raylm.serve.messages import Call, CalledFunction, Message
from raylm.serve.strict import Empty, Wire, is_list
from raylm.serve.wire import MAX_MESSAGES


class Part(Wire):
    """A piece of a message's text; of answers sent back, the logprobs say nothing new."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Empty = None
    logprobs: list[Any] | None = None


def _text_of(value: Any) -> Any:
    """A content as one string; parts are joined as those of chats are."""
    if not is_list(value):
        return value
    texts = []
    for part in value:
        try:
            texts.append(Part.model_validate(part).text)
        except ValidationError:
            kind = part.get("type") if isinstance(part, dict) else None
            raise ValueError(
                f"has a part of type {kind!r} that cannot be used; only input_text and output_text "
                "are supported"
            ) from None
    return "".join(texts)


Content = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[Part])]


class InputMessage(Wire):
    """One turn; `id` and `status` are what an answer that is sent back carries."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCall(CalledFunction):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str = Field(max_length=256)
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def for_chat(self) -> Call:
        """The call as chats have it."""
        function = CalledFunction(name=self.name, arguments=self.arguments)
        return Call(id=self.call_id, type="function", function=function)


class FunctionCallOutput(Wire):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=256)
    output: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


MAX_ITEMS = MAX_MESSAGES - 1
"""The instructions are a message, too."""


def _kind(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("type", "message")
    return getattr(value, "type", None)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="must be a message, a function_call or a function_call_output",
    ),
]


def read_items(value: Any) -> Any:
    """Validate `input`: a string is what the user says.

    Raises:
        ValueError: it is none of its forms.
    """
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if not is_list(value) or not value:
        raise ValueError("must be a string or a non-empty array of items")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"has {len(value)} items, and at most {MAX_ITEMS} are taken")
    return tuple(value)


def chat_messages(items: Sequence[Item]) -> list[Message]:
    """The conversation as chats have it: calls belong to the message that they follow."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, InputMessage):
            messages.append(Message(role=item.role, content=item.content))
        elif isinstance(item, FunctionCallOutput):
            messages.append(Message(role="tool", content=item.output, tool_call_id=item.call_id))
        else:
            if not messages or messages[-1].role != "assistant":
                messages.append(Message(role="assistant"))
            calls = (*messages[-1].tool_calls, item.for_chat())
            messages[-1] = messages[-1].model_copy(update={"tool_calls": calls})
    return messages
