"""Tool calls in what a model writes: text in, piece by piece; text and calls out.

Pure. What comes out depends on the whole text alone, not on where it was cut into pieces; what
is no well-formed call stays text. Two ways of writing calls are known, and a model's chat
template tells which one it was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Syntax = Literal["hermes", "llama"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
_MARKS_OF_HERMES = re.compile(r'\\?"arguments\\?"')
_MARKS_OF_LLAMA = re.compile(r'\\?"parameters\\?"|<\|python_tag\|>')


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants made; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


Piece = str | ToolCall


class CallParser(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> list[Piece]:
        """What a piece of text settles."""
        ...

    def flush(self) -> list[Piece]:
        """The rest, when no text follows."""
        ...


def syntax_of(template: str) -> Syntax | None:
    """How a model writes calls, from its chat template's source; None if it is not known.

    Hermes, Qwen: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`. Llama 3.1:
    `{"name": ..., "parameters": ...}` as the whole answer. Others that use the same tag with
    something else than JSON in it (Qwen3-Coder) are not taken for Hermes.
    """
    if OPEN in template:
        return "hermes" if _MARKS_OF_HERMES.search(template) else None
    return "llama" if _MARKS_OF_LLAMA.search(template) else None


def call_parser(syntax: Syntax, names: Collection[str]) -> CallParser:
    """A parser for one answer; `names` are those of the tools that were offered."""
    return HermesParser() if syntax == "hermes" else LlamaParser(names)


class HermesParser:
    """Calls between tags, text around them. Blanks next to a call are not part of the text."""

    def __init__(self) -> None:
        self._held = ""
        self._blanks = ""  # between the text and the call that has begun
        self._in_call = False
        self._searched = 0  # of a call's text: its end is not before
        self._after_call = False

    def feed(self, text: str) -> list[Piece]:
        """What a piece of text settles."""
        self._held += text
        return self._pieces(lambda held: len(held) - _open_end(held))

    def flush(self) -> list[Piece]:
        """The rest: a call whose end tag is missing is one if its JSON is whole."""
        pieces = self._pieces(len)
        if self._in_call:
            pieces += self._call(self._held, self._held.removeprefix(OPEN))
        self._held = ""
        return pieces

    def _pieces(self, end_of_text: Callable[[str], int]) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            if self._in_call:
                end = self._end_of_call()
                if end is None:
                    return pieces
                written, self._held = self._held[:end], self._held[end:]
                pieces += self._call(written, written[len(OPEN) : -len(CLOSE)])
            start = self._held.find(OPEN)
            end = start if start >= 0 else end_of_text(self._held)
            text, self._held = self._held[:end], self._held[end:]
            if start < 0:
                return pieces + self._text(text)
            pieces += self._text(text.rstrip())
            self._blanks = text[len(text.rstrip()) :]
            self._in_call, self._searched = True, 0

    def _call(self, written: str, inner: str) -> list[Piece]:
        """The call that was written, or its text if it is none."""
        self._in_call = False
        call = _call_of(_loads(inner), ("arguments",))
        if call is None:
            return self._text(self._blanks + written)
        self._after_call = True
        return [call]

    def _end_of_call(self) -> int | None:
        """Where the call that begins the held text ends; not within a string of its JSON."""
        end = self._held.find(CLOSE, self._searched)
        while end >= 0 and _is_in_string(self._held[len(OPEN) : end]):
            self._searched = end + len(CLOSE)
            end = self._held.find(CLOSE, self._searched)
        return end + len(CLOSE) if end >= 0 else None

    def _text(self, text: str) -> list[Piece]:
        if self._after_call:
            text = text.lstrip()
        if not text:
            return []
        self._after_call = False
        return [text]


class LlamaParser:
    """An answer that is nothing but calls of tools that were offered, or text.

    Llama 3.1 has no mark that its calls always bear, and may answer with JSON, too: so an
    object counts only under the name of an offered tool. Several stand behind each other, with
    blanks or semicolons between them.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False

    def feed(self, text: str) -> list[Piece]:
        """What a piece of text settles: all of it, unless it may still be a call."""
        self._held += text
        begin = self._held.lstrip()
        may_be_call = not begin or begin[0] == "{" or _agree(begin, PYTHON_TAG)
        self._is_text = self._is_text or not may_be_call
        return self._give() if self._is_text else []

    def flush(self) -> list[Piece]:
        """The calls, or the text that was held."""
        calls = [] if self._is_text else self._calls()
        return [*calls] if calls else self._give()

    def _give(self) -> list[Piece]:
        text, self._held = self._held, ""
        return [text] if text else []

    def _calls(self) -> list[ToolCall]:
        rest = self._held.strip().removeprefix(PYTHON_TAG).lstrip()
        calls = []
        while rest:
            try:
                found, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            call = _call_of(found, ("parameters", "arguments"))
            if call is None or call.name not in self._names:
                return []
            calls.append(call)
            rest = rest[end:].lstrip("; \n\r\t")
        return calls


def _call_of(found: Any, keys: Collection[str]) -> ToolCall | None:
    """A call from an object with a name and arguments under one of the keys."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    key = next((key for key in keys if key in found), None)
    arguments = found[key] if key is not None else {}
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(arguments, dict) or set(found) - {"name", key}:
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:  # numbers that are none
        return None
    return ToolCall(found["name"], text)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_in_string(text: str) -> bool:
    """Whether JSON is cut within a string."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False


def _open_end(text: str) -> int:
    """How much of a text's end must wait: blanks, and what may be the beginning of a tag."""
    length = next((n for n in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:n])), 0)
    kept = text[: len(text) - length].rstrip()
    return len(text) - len(kept)


def _agree(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)
