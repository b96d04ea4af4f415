"""Where the documents of packed rows lie, and which models' attention is told so."""

from __future__ import annotations

from typing import Any

import numpy as np

Span = tuple[int, int, int]
"""A document's row, first and last place (exclusive)."""


def spans_of(segment_ids: np.ndarray) -> list[Span]:
    """The runs of equal ids in rows [n, L], row by row; every place is in exactly one."""
    length = segment_ids.shape[1]
    starts = np.ones(segment_ids.shape, bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    rows, firsts = np.nonzero(starts)
    lasts = np.append(firsts[1:], length)
    lasts[lasts == 0] = length
    return list(zip(rows.tolist(), firsts.tolist(), lasts.tolist(), strict=True))


def set_attention(model: Any, name: str) -> None:
    """Have a transformers model attend by a registered implementation.

    One whose attention is more than softmax over all keys before it stays as it is.
    """
    config = model.config
    more = ("attention_dropout", "sliding_window", "attn_logit_softcapping")
    is_plain = not any(getattr(config, each, None) for each in more)
    if config._attn_implementation == "sdpa" and is_plain:
        model.set_attn_implementation(name)
