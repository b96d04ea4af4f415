"""Log-probabilities on the wire: OpenAI's shapes for completions and chats, vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylm.engine.protocol import TokenLogprob
from raylm.serve.tokenizer import PromptTokenizer

LEAST = -9999.0
"""JSON has no minus infinity; OpenAI's number for it."""


def completion_scores(
    entries: Sequence[tuple[int, TokenLogprob | None]],
    tokenizer: PromptTokenizer,
    *,
    num_top: int,
    offset: int,
) -> tuple[dict[str, Any], int]:
    """Completions' `logprobs` of tokens whose text begins at `offset`, and where it ends.

    An entry is a token and what is known of it: nothing of a prompt's first. Special tokens
    have no place in the text. Of tokens that look the same, the likelier one is told.
    """
    tokens: list[str] = []
    offsets, logprobs, tops = [], [], []
    for token_id, entry in entries:
        tokens.append(tokenizer.token_text(token_id))
        offsets.append(offset)
        offset += 0 if tokenizer.is_special(token_id) else len(tokens[-1])
        logprobs.append(None if entry is None else max(entry.logprob, LEAST))
        top = None if entry is None else reversed(entry.top[:num_top])
        tops.append(
            None
            if top is None
            else {tokenizer.token_text(other): max(logprob, LEAST) for other, logprob in top}
        )
    shown = {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return shown, offset


def prompt_scores(
    prompt_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    tokenizer: PromptTokenizer,
    *,
    num_top: int,
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id, the prompt's own token and the likeliest ones.

    `rank` counts from 1; it is null for a prompt's token that is not among the likeliest.
    """
    found: list[dict[str, Any] | None] = []
    for token_id, entry in zip(prompt_ids, entries, strict=True):
        if entry is None:
            found.append(None)
            continue
        ranked = {other: rank for rank, (other, _) in enumerate(entry.top[:num_top], 1)}
        listed = dict(entry.top[:num_top]) | {token_id: entry.logprob}
        found.append(
            {
                str(other): {
                    "logprob": max(logprob, LEAST),
                    "rank": ranked.get(other),
                    "decoded_token": tokenizer.token_text(other),
                }
                for other, logprob in listed.items()
            }
        )
    return found


def chat_scores(
    entries: Sequence[TokenLogprob], tokenizer: PromptTokenizer
) -> list[dict[str, Any]]:
    """What chats and Responses say of each token."""

    def token(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        text = raw.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(raw)}

    return [
        token(entry.token_id, entry.logprob)
        | {"top_logprobs": [token(other, logprob) for other, logprob in entry.top]}
        for entry in entries
    ]
