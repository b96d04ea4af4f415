"""From a request body to token ids."""

from __future__ import annotations

from raylm.errors import RequestError
from raylm.model.chat import ChatTemplate
from raylm.serve.catalog import Entry
from raylm.serve.toolset import Toolset
from raylm.serve.wire import ChatBody, CompletionBody


async def completion_prompts(
    body: CompletionBody, entry: Entry, *, limit_tokens: int, end_id: int | None
) -> list[tuple[int, ...]]:
    """Token ids of every prompt; those given as token ids pass unchanged. `end_id` as in
    `PromptTokenizer.encode`.

    Raises:
        RequestError: a prompt cannot fit.
    """
    prompts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            prompt = await entry.tokenizer.encode(
                prompt,
                add_special_tokens=True,
                limit_tokens=limit_tokens,
                param="prompt",
                end_id=end_id,
            )
        prompts.append(prompt)
    return prompts


def echoes(body: CompletionBody, entry: Entry) -> list[str]:
    """For every answer, the text of its prompt if it is to be repeated in front of it."""
    n = body.n or 1
    if not body.echo:
        return [""] * (len(body.prompt) * n)
    texts = [p if isinstance(p, str) else entry.tokenizer.decode(p) for p in body.prompt]
    return [text for text in texts for _ in range(n)]


def template_of(entry: Entry) -> ChatTemplate:
    """A model's chat template.

    Raises:
        RequestError: it has none.
    """
    if entry.template is None:
        raise RequestError(
            f"the model {entry.model.name!r} has no chat template; use /v1/completions",
            code="no-chat-template",
            param="model",
        )
    return entry.template


async def chat_prompt(
    body: ChatBody,
    entry: Entry,
    template: ChatTemplate,
    toolset: Toolset | None,
    *,
    limit_tokens: int,
) -> tuple[int, ...]:
    """Token ids of a conversation, through the model's chat template.

    Raises:
        RequestError: the template refuses, or the prompt cannot fit.
    """
    text = template.render(
        [message.for_template() for message in body.messages],
        tools=toolset.for_template() if toolset is not None else (),
    )
    # The template writes the special tokens itself.
    return await entry.tokenizer.encode(
        text, add_special_tokens=False, limit_tokens=limit_tokens, param="messages"
    )
