"""Toolset: what one chat may call, how its model writes calls, and what it must write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raylm.engine.grammar import json_of
from raylm.engine.protocol import Grammar
from raylm.engine.schema import check_schema
from raylm.errors import RequestError
from raylm.model.chat import ChatTemplate
from raylm.serve.messages import Tool, ToolChoice
from raylm.serve.tools import CLOSE, OPEN, CallParser, Syntax, call_parser, syntax_of
from raylm.serve.wire import ChatBody

AUTO = ToolChoice("auto")
_ARGUMENTS_KEY = {"hermes": "arguments", "llama": "parameters"}


@dataclass(frozen=True, slots=True)
class Toolset:
    """The tools of a request whose model may call them."""

    tools: tuple[Tool, ...]
    choice: ToolChoice
    is_parallel: bool
    syntax: Syntax

    def for_template(self) -> list[dict[str, Any]]:
        """What chat templates know of tools."""
        return [tool.for_template() for tool in self.tools]

    def parser(self) -> CallParser:
        """A parser for one answer."""
        return call_parser(self.syntax, {tool.function.name for tool in self.tools})

    def grammar(self, token_id: Callable[[str], int | None]) -> Grammar | None:
        """What the answer must look like; None where any text will do.

        A call that must be made follows its tool's schema, and so does one of a `strict` tool.
        `token_id` knows tags that are single tokens: grammars tell them from their spelling.

        Raises:
            RequestError: a schema has a keyword that cannot be enforced.
        """
        required = self.choice.mode == "required"
        if not required and self.is_parallel and not any(t.function.strict for t in self.tools):
            return None
        called = [t for t in self.tools if self.choice.name in (None, t.function.name)]
        rules = list(_call_rules(called, self.syntax, enforced=required))
        if self.syntax == "llama":
            # A call is the whole answer; other answers do not begin like one.
            start = "call" if required else r"/([^{\s](.|\n)*)?/ | call"
            rules += [f"start: {start}", "call: body"]
        else:
            rules += _hermes_rules(token_id, required=required, several=self.is_parallel)
        return Grammar("lark", "\n".join(rules), "tools")


def toolset_of(body: ChatBody, template: ChatTemplate, *, max_tools: int) -> Toolset | None:
    """The tools that the answer may call; None if there are none.

    Raises:
        RequestError: the model knows no tools, or the request contradicts itself.
    """
    if not template.knows_tools and (body.tools or any(m.is_about_tools for m in body.messages)):
        raise RequestError(
            "the model's chat template has no tools",
            code="no-tools",
            param="tools" if body.tools else "messages",
        )
    choice = body.tool_choice or AUTO
    names = [tool.function.name for tool in body.tools]
    if choice.mode == "required" and (choice.name is None and not names):
        raise _bad("tool_choice requires a call, and there are no tools", "tool_choice")
    if choice.name is not None and choice.name not in names:
        raise _bad(f"tool_choice names {choice.name!r}, which is none of the tools", "tool_choice")
    if len(names) > max_tools:
        raise _bad(f"{len(names)} tools are more than {max_tools}", "tools")
    if len(set(names)) < len(names):
        raise _bad("two tools have the same name", "tools")
    if not names or choice.mode == "none":
        return None
    structure = body.grammar()
    if structure is not None:
        raise _bad("an answer that may call tools cannot have a form of its own", structure.param)
    syntax = syntax_of(template.source)
    if syntax is None:
        raise RequestError(
            "how this model writes tool calls is not known; known are Hermes' (Qwen's) and "
            "Llama 3.1's way",
            code="unknown-tool-syntax",
            param="tools",
        )
    return Toolset(body.tools, choice, body.parallel_tool_calls is not False, syntax)


def _call_rules(tools: list[Tool], syntax: Syntax, *, enforced: bool) -> Iterator[str]:
    """`body`: the JSON of one call."""
    yield "body: " + " | ".join(f"call_{index}" for index in range(len(tools)))
    for index, tool in enumerate(tools):
        schema: dict[str, Any] = {"type": "object"}
        if enforced or tool.function.strict:
            schema = tool.function.schema_of_arguments
            try:
                check_schema(schema)
            except ValueError as error:
                raise _bad(f"the tool {tool.function.name!r}: {error}", "tools") from None
        head = f'{{"name": "{tool.function.name}", "{_ARGUMENTS_KEY[syntax]}": '
        # A schema by itself and not within one of the call: its references are from its root.
        yield f'call_{index}: {json.dumps(head)} %json {json_of(schema)} "}}"'


def _hermes_rules(
    token_id: Callable[[str], int | None], *, required: bool, several: bool
) -> list[str]:
    opens, closes = token_id(OPEN), token_id(CLOSE)
    close = json.dumps(CLOSE) if closes is None else f"<[{closes}]>"
    text = r"/(.|\n)*/"
    if required or opens is not None:
        begin = json.dumps(OPEN) if opens is None else f"<[{opens}]>"
        rules = [f'call: {begin} "\\n" body "\\n" {close}']
        if required:
            start = 'call ("\\n" call)*' if several else "call"
        else:
            rules.append(f"text: {text}")
            start = "text (call text)*" if several else "text call?"
    else:
        # The tag is text itself: the shortest text that ends with it begins a call.
        rules = [
            f"TEXT: {text}",
            f"begin[lazy]: TEXT {json.dumps(OPEN)}",
            f'call: begin "\\n" body "\\n" {close}',
        ]
        start = "call* TEXT" if several else "TEXT | call"
    return [f"start: {start}", *rules]


def _bad(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid-parameter", param=param)
