"""Chunks between a replica and a gateway, as plain tuples.

Every token of every answer makes this trip. Pickled as tuples, chunks cost a fraction of what
Serve's default (cloudpickle of dataclasses) takes, which was half of a replica's work beside
the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from raylm.engine.protocol import Chunk, FinishReason, TokenLogprob

Logprob = tuple[int, float, tuple[tuple[int, float], ...]]
"""Token id, logprob, the likeliest alternatives."""

Packed = tuple[
    int,
    tuple[int, ...],
    str,
    tuple[Logprob, ...],
    FinishReason | None,
    int | None,
    tuple[Logprob | None, ...],
    str,
]
"""Position, token ids, text, logprobs, finish reason, cached tokens, the prompt's logprobs, the
weights' digest."""


def pack(chunks: Sequence[Chunk]) -> list[Packed]:
    """Chunks of one request for the way; its id is known at both ends."""
    return [
        (
            chunk.position,
            chunk.token_ids,
            chunk.text,
            tuple((entry.token_id, entry.logprob, entry.top) for entry in chunk.logprobs),
            chunk.finish_reason,
            chunk.num_cached_tokens,
            tuple(
                None if entry is None else (entry.token_id, entry.logprob, entry.top)
                for entry in chunk.prompt_logprobs
            ),
            chunk.digest,
        )
        for chunk in chunks
    ]


def unpack(request_id: str, packed: Sequence[Packed]) -> list[Chunk]:
    """The chunks again."""
    return [
        Chunk(
            request_id,
            position,
            token_ids,
            text,
            tuple(TokenLogprob(*entry) for entry in logprobs),
            reason,
            num_cached,
            tuple(None if entry is None else TokenLogprob(*entry) for entry in of_prompt),
            digest,
        )
        for position, token_ids, text, logprobs, reason, num_cached, of_prompt, digest in packed
    ]
