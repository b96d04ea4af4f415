"""How answers look on the wire: OpenAI's completion and chat objects, whole and streamed.

A stream sends one event per piece of text, so its JSON is put together from a prefix made
once per choice and the escaped text; nothing is validated or serialised per token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Protocol

from raylm.engine.protocol import Chunk, FinishReason, TokenLogprob
from raylm.errors import RequestError
from raylm.serve.answer import Answer, Choice
from raylm.serve.failure import error_json
from raylm.serve.plan import Plan
from raylm.serve.scores import chat_scores, completion_scores, prompt_scores
from raylm.serve.sse import DONE, event
from raylm.serve.tokenizer import PromptTokenizer
from raylm.serve.tools import CallParser, Piece, ToolCall
from raylm.serve.wire import CompletionBody


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one call carries."""

    id: str
    model: str
    created: int
    """Unix time, s."""
    fingerprint: str
    """The first twelve digits of the model's digest."""
    with_usage: bool = False
    """Stream events carry a `usage` field (null but in the last)."""

    def fields(self, kind: str) -> dict[str, Any]:
        """The leading fields of an object of a kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint or None,
        }


class Format(Protocol):
    """One endpoint's way of writing answers."""

    def events(self, choice: Choice, chunk: Chunk) -> bytes:
        """What a stream says about a chunk; empty if that is nothing."""
        ...

    def last_events(self, answer: Answer) -> bytes:
        """What it says last when the answer is whole."""
        ...

    def failure(self, error: RequestError) -> bytes:
        """What it says last when it breaks."""
        ...

    def body(self, answer: Answer) -> str:
        """The whole answer, as JSON text."""
        ...


class _StreamText:
    """The parts of events that are the same for all chunks of a choice."""

    def __init__(self, head: Head, kind: str) -> None:
        self._open = json.dumps(head.fields(kind))[:-1] + ', "choices": ['
        self._with_usage = head.with_usage
        self._close = '], "usage": null}' if head.with_usage else "]}"

    def event(self, index: int, payload: str, logprobs: str, reason: str | None) -> bytes:
        finish = "null" if reason is None else f'"{reason}"'
        return event(
            f'{self._open}{{"index": {index}, {payload}, "logprobs": {logprobs}, '
            f'"finish_reason": {finish}}}{self._close}'
        )

    def last_events(self, answer: Answer) -> bytes:
        if not self._with_usage:
            return DONE
        return event(f'{self._open}], "usage": {json.dumps(answer.usage())}}}') + DONE


class CompletionFormat:
    """`text_completion` objects; `echoes` has the text to repeat before each choice."""

    def __init__(
        self,
        head: Head,
        body: CompletionBody,
        plan: Plan,
        echoes: Sequence[str],
        tokenizer: PromptTokenizer,
    ) -> None:
        self._head = head
        self._plan = plan
        self._is_echo = bool(body.echo)
        self._num_logprobs, self._num_of_prompt = body.logprobs, body.prompt_logprobs
        self._echoes = echoes
        self._tokenizer = tokenizer
        self._stream = _StreamText(head, "text_completion")
        self._offsets: dict[int, int] = {}

    def events(self, choice: Choice, chunk: Chunk) -> bytes:
        """A piece of text; the first one of a choice begins with its echo."""
        text, is_first = chunk.text, len(choice.text) == 1
        if is_first:
            text = self._echoes[choice.index] + text
        scores = self._scores(choice, chunk.logprobs)
        is_about_prompt = is_first and self._num_of_prompt is not None
        if not (text or scores or is_about_prompt or chunk.finish_reason):
            return b""
        payload = f'"text": {quote(text)}'
        if is_about_prompt:
            payload += f', "prompt_logprobs": {json.dumps(self._prompt_scores(choice))}'
        logprobs = json.dumps(scores) if scores else "null"
        return self._stream.event(choice.index, payload, logprobs, chunk.finish_reason)

    def last_events(self, answer: Answer) -> bytes:
        """The token counts, if they are wanted, and the mark of a whole stream."""
        return self._stream.last_events(answer)

    def failure(self, error: RequestError) -> bytes:
        """The error, without that mark."""
        return event(error_json(error))

    def body(self, answer: Answer) -> str:
        """The whole object."""
        choices = [
            {
                "index": choice.index,
                "text": self._echoes[choice.index] + "".join(choice.text),
                "logprobs": self._scores(choice, choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            | (
                {}
                if self._num_of_prompt is None
                else {"prompt_logprobs": self._prompt_scores(choice)}
            )
            for choice in answer.choices
        ]
        fields = self._head.fields("text_completion")
        return json.dumps(fields | {"choices": choices, "usage": answer.usage()})

    def _scores(self, choice: Choice, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Of the next tokens of a choice; the first ones have its prompt's before them."""
        if self._num_logprobs is None:
            return None
        start = self._offsets.get(choice.index)
        entries: list[tuple[int, TokenLogprob | None]] = []
        if self._is_echo and start is None:
            entries += zip(self._prompt(choice), choice.prompt_logprobs, strict=True)
        num_top = self._num_logprobs
        prompt, _ = completion_scores(entries, self._tokenizer, num_top=num_top, offset=0)
        answer, self._offsets[choice.index] = completion_scores(
            [(entry.token_id, entry) for entry in logprobs],
            self._tokenizer,
            num_top=num_top,
            offset=len(self._echoes[choice.index]) if start is None else start,
        )
        joined = {name: values + answer[name] for name, values in prompt.items()}
        return joined if joined["tokens"] else None

    def _prompt_scores(self, choice: Choice) -> list[dict[str, Any] | None] | None:
        if self._num_of_prompt is None:
            return None
        return prompt_scores(
            self._prompt(choice),
            choice.prompt_logprobs,
            self._tokenizer,
            num_top=self._num_of_prompt,
        )

    def _prompt(self, choice: Choice) -> tuple[int, ...]:
        return self._plan.requests[choice.index].prompt_ids


class CallReader:
    """Takes the tool calls out of one choice's text."""

    def __init__(self, call_id: str, choice: int, parser: CallParser) -> None:
        self._prefix = f"call_{call_id}_{choice}"
        self._parser = parser
        self._num_calls = 0

    def read(
        self, text: str, reason: FinishReason | None
    ) -> tuple[str, list[dict[str, Any]], str | None]:
        """The text without calls, the calls in OpenAI's shape, and the reason they have."""
        pieces: list[Piece] = self._parser.feed(text)
        if reason is not None:
            pieces += self._parser.flush()
        calls = [self._shown(piece) for piece in pieces if isinstance(piece, ToolCall)]
        shown = "tool_calls" if reason == "stop" and self._num_calls else reason
        return "".join(piece for piece in pieces if isinstance(piece, str)), calls, shown

    def _shown(self, call: ToolCall) -> dict[str, Any]:
        index = self._num_calls
        self._num_calls += 1
        return {
            "index": index,
            "id": f"{self._prefix}_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }


class ChatFormat:
    """`chat.completion` objects; `parser` makes what finds tool calls, where there may be any."""

    def __init__(
        self, head: Head, tokenizer: PromptTokenizer, parser: Callable[[], CallParser] | None
    ) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._call_id = head.id.removeprefix("chatcmpl-")
        self._make_parser = parser
        self._readers: dict[int, CallReader] = {}
        self._stream = _StreamText(head, "chat.completion.chunk")

    def events(self, choice: Choice, chunk: Chunk) -> bytes:
        """A delta; the first one of a choice names the role."""
        first = len(choice.text) == 1
        text, calls, reason = self._read(choice.index, chunk.text, chunk.finish_reason)
        if not (first or text or calls or chunk.logprobs or reason):
            return b""
        parts = ['"role": "assistant"'] if first else []
        if text or (first and not calls):
            parts.append(f'"content": {quote(text)}')
        if calls:
            parts.append(f'"tool_calls": {json.dumps(calls)}')
        logprobs = json.dumps(self._logprobs(chunk.logprobs)) if chunk.logprobs else "null"
        payload = f'"delta": {{{", ".join(parts)}}}'
        return self._stream.event(choice.index, payload, logprobs, reason)

    def last_events(self, answer: Answer) -> bytes:
        """The token counts, if they are wanted, and the mark of a whole stream."""
        return self._stream.last_events(answer)

    def failure(self, error: RequestError) -> bytes:
        """The error, without that mark."""
        return event(error_json(error))

    def body(self, answer: Answer) -> str:
        """The whole object."""
        choices = [self._choice(choice) for choice in answer.choices]
        fields = self._head.fields("chat.completion")
        return json.dumps(fields | {"choices": choices, "usage": answer.usage()})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        text, calls, reason = self._read(choice.index, "".join(choice.text), choice.finish_reason)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            for call in calls:
                del call["index"]  # only deltas say which call they belong to
            message |= {"content": text or None, "tool_calls": calls}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs) if choice.logprobs else None,
            "finish_reason": reason,
        }

    def _read(
        self, index: int, text: str, reason: FinishReason | None
    ) -> tuple[str, list[dict[str, Any]], str | None]:
        """The next text of a choice, the calls in it, and the finish reason to tell."""
        if self._make_parser is None:
            return text, [], reason
        if index not in self._readers:
            self._readers[index] = CallReader(self._call_id, index, self._make_parser())
        return self._readers[index].read(text, reason)

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": chat_scores(logprobs, self._tokenizer), "refusal": None}
