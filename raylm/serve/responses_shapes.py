"""What Responses look like, for the document of the API."""

from __future__ import annotations

from typing import Any, Literal

from raylm.serve.responses import FunctionTool, NamedFunction, TextFormat
from raylm.serve.shapes import ChatToken, ItemStatus, Shape

Status = Literal["in_progress", "completed", "incomplete", "failed"]
EventName = Literal[
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class OutputText(Shape):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChatToken]


class OutputMessage(Shape):
    """What the assistant says."""

    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Shape):
    """A call that the model makes."""

    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class InputDetails(Shape):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Shape):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(Shape):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(Shape):
    """Why a response failed in mid-stream."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(Shape):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseText(Shape):
    """The form of the text."""

    format: TextFormat


class ResponseObject(Shape):
    """POST /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: ResponseText
    tool_choice: Literal["none", "auto", "required"] | NamedFunction
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class ResponseEvent(Shape):
    """An event of a streamed response; which fields it has follows from its type."""

    type: EventName
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int = 0
    content_index: int = 0
    item_id: str = ""
    item: OutputMessage | OutputCall | None = None
    part: OutputText | None = None
    delta: str = ""
    text: str = ""
    logprobs: list[ChatToken] | None = None
    name: str = ""
    arguments: str = ""
