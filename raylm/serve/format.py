"""How answers look on the wire: OpenAI's completion and chat objects, whole and streamed.

A stream sends one event per piece of text, so its JSON is put together from a prefix made
once per choice and the escaped text; nothing is validated or serialised per token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Protocol

from raylm.engine.protocol import Chunk, TokenLogprob
from raylm.serve.answer import Answer, Choice
from raylm.serve.tokenizer import PromptTokenizer


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

    def event(self, choice: Choice, chunk: Chunk) -> str | None:
        """A stream event for a chunk, as JSON text; None if there is nothing to say."""
        ...

    def usage_event(self, usage: dict[str, int]) -> str:
        """The stream's last event, with the token counts."""
        ...

    def body(self, answer: Answer) -> str:
        """The whole answer, as JSON text."""
        ...


class _StreamText:
    """The parts of events that are the same for all chunks of a choice."""

    def __init__(self, head: Head, kind: str) -> None:
        self._open = json.dumps(head.fields(kind))[:-1] + ', "choices": ['
        self._close = '], "usage": null}' if head.with_usage else "]}"

    def event(self, index: int, payload: str, logprobs: str, reason: str | None) -> str:
        finish = "null" if reason is None else f'"{reason}"'
        return (
            f'{self._open}{{"index": {index}, {payload}, "logprobs": {logprobs}, '
            f'"finish_reason": {finish}}}{self._close}'
        )

    def usage_event(self, usage: dict[str, int]) -> str:
        return f'{self._open}], "usage": {json.dumps(usage)}}}'


class CompletionFormat:
    """`text_completion` objects; `echoes` has the text to repeat before each choice."""

    def __init__(self, head: Head, echoes: Sequence[str], tokenizer: PromptTokenizer) -> None:
        self._head = head
        self._echoes = echoes
        self._tokenizer = tokenizer
        self._stream = _StreamText(head, "text_completion")
        self._offsets: dict[int, int] = {}

    def event(self, choice: Choice, chunk: Chunk) -> str | None:
        """A piece of text; the first one of a choice begins with its echo."""
        text = chunk.text
        if len(choice.text) == 1:
            text = self._echoes[choice.index] + text
        if not text and not chunk.logprobs and chunk.finish_reason is None:
            return None
        logprobs = "null"
        if chunk.logprobs:
            logprobs = json.dumps(self._logprobs(choice.index, chunk.logprobs))
        payload = f'"text": {quote(text)}'
        return self._stream.event(choice.index, payload, logprobs, chunk.finish_reason)

    def usage_event(self, usage: dict[str, int]) -> str:
        """The token counts."""
        return self._stream.usage_event(usage)

    def body(self, answer: Answer) -> str:
        """The whole object."""
        choices = [
            {
                "index": choice.index,
                "text": self._echoes[choice.index] + "".join(choice.text),
                "logprobs": self._logprobs(choice.index, choice.logprobs)
                if choice.logprobs
                else None,
                "finish_reason": choice.finish_reason,
            }
            for choice in answer.choices
        ]
        fields = self._head.fields("text_completion")
        return json.dumps(fields | {"choices": choices, "usage": answer.usage()})

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        text_of = self._tokenizer.token_text
        offset = self._offsets.get(index, len(self._echoes[index]))
        tokens, offsets = [], []
        for entry in logprobs:
            tokens.append(text_of(entry.token_id))
            offsets.append(offset)
            offset += len(tokens[-1])
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [
                {text_of(token): logprob for token, logprob in entry.top} for entry in logprobs
            ],
            "text_offset": offsets,
        }


class ChatFormat:
    """`chat.completion` objects."""

    def __init__(self, head: Head, tokenizer: PromptTokenizer) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._stream = _StreamText(head, "chat.completion.chunk")

    def event(self, choice: Choice, chunk: Chunk) -> str | None:
        """A delta; the first one of a choice names the role."""
        first = len(choice.text) == 1
        if not (first or chunk.text or chunk.logprobs or chunk.finish_reason):
            return None
        role = '"role": "assistant", ' if first else ""
        delta = f'{role}"content": {quote(chunk.text)}' if first or chunk.text else ""
        logprobs = json.dumps(self._logprobs(chunk.logprobs)) if chunk.logprobs else "null"
        payload = f'"delta": {{{delta}}}'
        return self._stream.event(choice.index, payload, logprobs, chunk.finish_reason)

    def usage_event(self, usage: dict[str, int]) -> str:
        """The token counts."""
        return self._stream.usage_event(usage)

    def body(self, answer: Answer) -> str:
        """The whole object."""
        choices = [
            {
                "index": choice.index,
                "message": {
                    "role": "assistant",
                    "content": "".join(choice.text),
                    "refusal": None,
                },
                "logprobs": self._logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for choice in answer.choices
        ]
        fields = self._head.fields("chat.completion")
        return json.dumps(fields | {"choices": choices, "usage": answer.usage()})

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        content = [
            self._token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in entry.top]}
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        text = raw.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}
