"""Chat templates: messages become text exactly as transformers would render them.

Serving makes prompts with them, the data stage the conversations that are trained on. Templates
come with models, so they are foreign code: they run in Jinja's immutable sandbox, with bounds on
the size of template and output and on the time between two pieces of output.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raylm.errors import ModelError, RequestError

MAX_TEMPLATE_BYTES = 256 * 1024
RENDER_TIMEOUT_S = 5.0
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class _Generation(Extension):
    """`{% generation %}` marks what the model says, for training; serving ignores the mark."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the block's body, drop the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A model's chat template, compiled. `dated` ones know today's date, if they ask for it."""

    def __init__(
        self, source: str, special_tokens: dict[str, str], *, max_chars: int, dated: bool = True
    ) -> None:
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise ModelError(
                f"the chat template is larger than {MAX_TEMPLATE_BYTES} bytes",
                code="chat-template-too-large",
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        if dated:
            environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source = source
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except (TemplateError, RecursionError) as error:
            raise ModelError(
                f"the chat template cannot be read: {error}", code="chat-template-broken"
            ) from error
        self.knows_tools = "tools" in names
        """Whether `tools` have an effect on what is rendered."""
        self._special_tokens = special_tokens
        self._max_chars = max_chars

    @classmethod
    def from_folder(cls, folder: Path, *, max_chars: int) -> ChatTemplate | None:
        """The template of a model folder, or None if it has none.

        Raises:
            ModelError: it is too large or is not a template.
        """
        found = read_template(folder)
        return None if found is None else cls(*found, max_chars=max_chars)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for the next answer, or the conversation as it is.

        Raises:
            RequestError: the template refuses the messages, or makes too much of them.
        """
        variables: dict[str, Any] = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) or None,
            "documents": None,
            **self._special_tokens,
        }
        pieces, size, deadline = [], 0, time.monotonic() + RENDER_TIMEOUT_S
        try:
            for piece in self._template.generate(variables):
                size += len(piece)
                if size > self._max_chars or time.monotonic() > deadline:
                    raise RequestError(
                        "the chat template makes too long a prompt of these messages",
                        code="context-length-exceeded",
                        param="messages",
                    )
                pieces.append(piece)
        except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}",
                code="chat-template-refused",
                param="messages",
            ) from error
        return "".join(pieces)


def read_template(folder: Path) -> tuple[str, dict[str, str]] | None:
    """Source of a tokenizer folder's chat template, and its special tokens by their roles."""
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = folder / "chat_template.jinja"
    if file.is_file():
        source: Any = file.read_text(encoding="utf-8")
    else:
        source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not source:
        return None
    return source, {name: _token_text(config[name]) for name in _SPECIAL if config.get(name)}


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which models have not seen.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
