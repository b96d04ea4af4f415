"""How answers look as Responses: one object, or named events that build it up item by item.

The whole object is made by the same steps as the stream, so that both have the same items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raylm.engine.protocol import Chunk, FinishReason
from raylm.errors import RequestError
from raylm.serve.answer import Answer, Choice
from raylm.serve.format import CallReader
from raylm.serve.responses import ResponsesBody
from raylm.serve.scores import chat_scores
from raylm.serve.sse import event
from raylm.serve.tokenizer import PromptTokenizer
from raylm.serve.tools import CallParser
from raylm.serve.toolset import AUTO

Events = list[tuple[str, dict[str, Any]]]
"""Names, and what each has beside name and number."""


@dataclass(slots=True)
class _Message:
    """The text of the answer: one item, open until the end."""

    id: str
    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(self.text),
            "annotations": [],
            "logprobs": list(self.logprobs),
        }

    def item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


class ResponsesFormat:
    """`response` objects, of one answer each."""

    def __init__(
        self,
        body: ResponsesBody,
        call_id: str,
        model: str,
        tokenizer: PromptTokenizer,
        parser: Callable[[], CallParser] | None,
    ) -> None:
        self._call_id = call_id
        self._tokenizer = tokenizer
        self._reader = None if parser is None else CallReader(call_id, 0, parser())
        self._head = _head(body, f"resp_{call_id}", model)
        self._items: list[dict[str, Any]] = []
        self._message: _Message | None = None
        self._scores: list[dict[str, Any]] = []
        """Of tokens whose text is still to come."""
        self._number = 0

    def events(self, choice: Choice, chunk: Chunk) -> bytes:
        """What a chunk adds, after what begins every stream."""
        found: Events = []
        if self._number == 0:
            beginning = {"response": self._response("in_progress")}
            found = [("response.created", beginning), ("response.in_progress", beginning)]
        self._scores += chat_scores(chunk.logprobs, self._tokenizer)
        return self._written(found + self._take(chunk.text, chunk.finish_reason))

    def last_events(self, answer: Answer) -> bytes:
        """The whole response."""
        response = self._ended(answer)
        return self._written([(f"response.{response['status']}", {"response": response})])

    def failure(self, error: RequestError) -> bytes:
        """The response as one that failed."""
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": error.message}
        return self._written([("response.failed", {"response": response})])

    def body(self, answer: Answer) -> str:
        """The whole object."""
        (choice,) = answer.choices
        self._scores = chat_scores(choice.logprobs, self._tokenizer)
        for text in choice.text[:-1]:
            self._take(text, None)
        self._take(choice.text[-1], choice.finish_reason)
        return json.dumps(self._ended(answer))

    def _take(self, text: str, reason: FinishReason | None) -> Events:
        """Take the next text in; the events that tell of it."""
        calls: list[dict[str, Any]] = []
        if self._reader is not None:
            text, calls, _ = self._reader.read(text, reason)
        found: Events = []
        is_empty = reason is not None and not self._items and not calls
        if text or is_empty:
            found += self._add_text(text)
        for call in calls:
            found += self._add_call(call)
        if reason is not None and self._message is not None:
            found += self._close(self._message, "incomplete" if reason == "length" else "completed")
        return found

    def _add_text(self, text: str) -> Events:
        found: Events = []
        message = self._message
        if message is None:
            message = self._message = _Message(f"msg_{self._call_id}", len(self._items))
            item = message.item("in_progress")
            self._items.append(item)
            found = [
                ("response.output_item.added", {"output_index": message.index, "item": item}),
                ("response.content_part.added", _inside(message) | {"part": message.part()}),
            ]
        message.text.append(text)
        message.logprobs += self._scores
        delta = {"delta": text, "logprobs": self._scores}
        self._scores = []
        return [*found, ("response.output_text.delta", _inside(message) | delta)]

    def _add_call(self, call: dict[str, Any]) -> Events:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        item = {
            "id": f"fc_{call['id'].removeprefix('call_')}",
            "type": "function_call",
            "status": "completed",
            "call_id": call["id"],
            "name": name,
            "arguments": arguments,
        }
        at = {"output_index": len(self._items)}
        inside = at | {"item_id": item["id"]}
        self._items.append(item)
        return [
            (
                "response.output_item.added",
                at | {"item": item | {"status": "in_progress", "arguments": ""}},
            ),
            ("response.function_call_arguments.delta", inside | {"delta": arguments}),
            (
                "response.function_call_arguments.done",
                inside | {"name": name, "arguments": arguments},
            ),
            ("response.output_item.done", at | {"item": item}),
        ]

    def _close(self, message: _Message, status: str) -> Events:
        message.logprobs += self._scores
        item = self._items[message.index] = message.item(status)
        part = message.part()
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            ("response.output_text.done", _inside(message) | done),
            ("response.content_part.done", _inside(message) | {"part": part}),
            ("response.output_item.done", {"output_index": message.index, "item": item}),
        ]

    def _ended(self, answer: Answer) -> dict[str, Any]:
        is_cut = answer.choices[0].finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed")
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        prompt, made = answer.plan.num_prompt_tokens, answer.num_generated_tokens
        response["usage"] = {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": answer.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + made,
        }
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return self._head | {"status": status, "output": list(self._items)}

    def _written(self, events: Events) -> bytes:
        pieces = []
        for name, fields in events:
            data = {"type": name, "sequence_number": self._number, **fields}
            pieces.append(event(json.dumps(data), name))
            self._number += 1
        return b"".join(pieces)


def _inside(message: _Message) -> dict[str, Any]:
    return {"item_id": message.id, "output_index": message.index, "content_index": 0}


def _head(body: ResponsesBody, response_id: str, model: str) -> dict[str, Any]:
    """What a response says of its request."""
    form = body.text.format if body.text is not None else None
    shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_unset=True)
    choice = body.tool_choice or AUTO
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": shown},
        "tool_choice": choice.mode
        if choice.name is None
        else {"type": "function", "name": choice.name},
        "tools": [tool.model_dump() for tool in body.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
    }
