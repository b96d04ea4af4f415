"""POST /v1/tokenize and /v1/detokenize, in vLLM's shapes: the gateway's own work."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from raylm.serve.asked import Asked
from raylm.serve.catalog import Entry
from raylm.serve.messages import Message
from raylm.serve.prompts import template_of
from raylm.serve.reply import Reply, Terms
from raylm.serve.tokenizer import PromptTokenizer
from raylm.serve.wire import message_list


def _optional_messages(value: Any) -> Any:
    return None if value is None else message_list(value)


def _token_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class TokenizeBody(Asked):
    """A text, or a conversation, which goes through the chat template."""

    prompt: str | None = None
    messages: Annotated[
        tuple[Message, ...] | None,
        BeforeValidator(
            _optional_messages,
            json_schema_input_type=Annotated[list[Message], Field(min_length=1)] | None,
        ),
    ] = None
    add_special_tokens: bool | None = None
    """None: those of a text; a chat template writes its own."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("one of 'prompt' and 'messages' is needed, and not both")
        return self


class DetokenizeBody(Asked):
    """Token ids."""

    tokens: Annotated[
        tuple[int, ...], BeforeValidator(_token_list, json_schema_input_type=list[int])
    ]


async def tokenize(body: TokenizeBody, entry: Entry, terms: Terms) -> Reply:
    """The tokens that a prompt has, whether or not it fits the model.

    Raises:
        RequestError: there is no chat template, it refuses, or no replica has been up yet to
            tell how long a prompt may be.
    """
    await terms.count(0)
    text, is_text = body.prompt, body.prompt is not None
    if body.messages is not None:
        text = template_of(entry).render(
            [message.for_template() for message in body.messages],
            add_generation_prompt=body.add_generation_prompt,
        )
    assert text is not None, "one of both is there"
    able = await entry.backend.capabilities()
    add = is_text if body.add_special_tokens is None else body.add_special_tokens
    ids = await entry.tokenizer.encode(
        text,
        add_special_tokens=add,
        limit_tokens=None,
        param="prompt",
        end_id=able.end_of_input_id,
    )
    names = None
    if body.return_token_strs:
        names = await asyncio.to_thread(entry.tokenizer.token_names, ids)
    answer = {
        "count": len(ids),
        "max_model_len": able.max_context_tokens,
        "tokens": list(ids),
        "token_strs": names,
    }
    return Reply(json.dumps(answer))


async def detokenize(body: DetokenizeBody, entry: Entry, terms: Terms) -> Reply:
    """The text of tokens, special ones included.

    Raises:
        RequestError: a token is not in the vocabulary.
    """
    await terms.count(0)
    text = await asyncio.to_thread(_text, entry.tokenizer, body.tokens)
    return Reply(json.dumps({"prompt": text}))


def _text(tokenizer: PromptTokenizer, tokens: tuple[int, ...]) -> str:
    tokenizer.token_names(tokens)  # unknown ones would be left out in silence
    return tokenizer.decode(tokens, skip_special_tokens=False)
