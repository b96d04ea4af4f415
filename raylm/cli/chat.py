"""raylm chat: a conversation with what is served, streamed to the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, StorePlace, open_store
from raylm.cli.output import say
from raylm.errors import ConfigError, HostError, RequestError, nearest

if TYPE_CHECKING:
    from openai import OpenAI


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A served model's name. [default: the first that is served]", show_default=False
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="Base of an OpenAI-compatible endpoint. [default: what this store serves]",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", help="System message. [default: none]", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")
    ] = 0.7,
    config: Config = None,
    store: StorePlace = None,
) -> None:
    """Talk to a served model; Ctrl-D ends. What is piped in is one message.

    An API key is taken from $RAYLM_API_KEY. A model without a chat template continues each
    line as text.
    """
    base = url or _recorded_url(store, config)
    import openai

    from raylm.serve.howto import KEY_VARIABLE

    key = os.environ.get(KEY_VARIABLE, "none")
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client:
        try:
            name = _choose(client, model)
            options = {"model": name, "max_tokens": max_tokens, "temperature": temperature}
            _talk(client, options, system)
        except openai.APIConnectionError as error:
            raise HostError(
                f"nothing answers at {base}",
                code="endpoint-unreachable",
                hint="`raylm serve` starts an endpoint, `raylm status` shows what runs",
            ) from error
        except openai.AuthenticationError as error:
            raise RequestError(
                f"{base} wants a key: {_message(error)}",
                code="key-needed",
                status=401,
                hint="export RAYLM_API_KEY=...",
            ) from error
        except openai.APIError as error:
            raise RequestError(_message(error), code="request-failed") from error


def _recorded_url(store: Any, config: str | None) -> str:
    from raylm.deploy.status import read_endpoint

    found = read_endpoint(open_store(store, config))
    if found is None:
        raise ConfigError(
            "nothing is served from this store",
            code="no-endpoint",
            hint="`raylm serve MODEL --detach` first, or give --url",
        )
    return str(found["url"])


def _choose(client: OpenAI, wanted: str | None) -> str:
    served = [model.id for model in client.models.list()]
    if wanted is None and served:
        return served[0]
    if wanted in served:
        return str(wanted)
    close = nearest(wanted or "", served)
    raise ConfigError(
        f"{wanted!r} is not served here; served: {', '.join(served) or 'nothing'}",
        code="model-not-served",
        hint=f"did you mean {close!r}?" if close else None,
    )


def _talk(client: OpenAI, options: dict[str, Any], system: str | None) -> None:
    import openai

    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    is_chat = True
    for text in _inputs():
        answer = ""
        messages.append({"role": "user", "content": text})
        if is_chat:
            try:
                answer = _show(_chat(client, options, messages))
            except openai.BadRequestError as error:
                if error.code != "no_chat_template":
                    raise
                is_chat = False
                say(f"{options['model']} has no chat template: it continues each line as text")
        if not is_chat:
            _show(_complete(client, options, text))
        messages.append({"role": "assistant", "content": answer})


def _inputs() -> Iterator[str]:
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip("\n")
        if text:
            yield text
        return
    # Line editing and history; importing it is enough.
    import readline  # noqa: F401

    while True:
        try:
            text = input("> ")
        except EOFError:
            say("")
            return
        if text.strip():
            yield text


def _chat(client: OpenAI, options: dict[str, Any], messages: list[Any]) -> Iterator[str]:
    with client.chat.completions.create(messages=messages, stream=True, **options) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""


def _complete(client: OpenAI, options: dict[str, Any], prompt: str) -> Iterator[str]:
    with client.completions.create(prompt=prompt, stream=True, **options) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.text or ""


def _show(parts: Iterator[str]) -> str:
    shown = []
    for part in parts:
        sys.stdout.write(part)
        sys.stdout.flush()
        shown.append(part)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(shown)


def _message(error: Any) -> str:
    body = getattr(error, "body", None)
    return str(body.get("message", error)) if isinstance(body, dict) else str(error)
