"""Causal attention within documents for GPUs: torch's kernel for sequences of varying lengths.

With a mask of documents torch's attention keeps the scores of all pairs of a row. Its kernel for
varying lengths (`torch.nn.attention.varlen`, FlashAttention-2, arXiv 2307.08691) takes the places
where documents begin instead, and looks at no pair of two documents at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raylm.model.spans import set_attention, spans_of

NAME = "raylm_varlen"
"""As a transformers `attn_implementation`."""
_TYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256
_SINCE = (8, 0)
"""Compute capability of the first GPUs that the kernel is for."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of rows [n, L], laid end to end."""

    starts: torch.Tensor
    """Where each begins, and where the last ends: int32 [documents + 1], on the model's device."""
    longest: int
    """Tokens of the longest."""


def use_varlen_attention(model: Any) -> None:
    """Make a transformers model ready for `documents`; without them it works as before."""
    set_attention(model, NAME)


def documents_for(model: Any, segment_ids: np.ndarray) -> Documents | None:
    """The documents of rows [n, L] for the keyword argument `documents` of a forward pass.

    Returns:
        None where the model or its GPU cannot take them, or every row is a single document, for
        which plain causal attention is the same.
    """
    if model.config._attn_implementation != NAME or not _is_for(model):
        return None
    spans = spans_of(segment_ids)
    if len(spans) == len(segment_ids):
        return None
    length = segment_ids.shape[1]
    starts = [row * length + first for row, first, _ in spans] + [segment_ids.size]
    return Documents(
        torch.tensor(starts, dtype=torch.int32, device=model.device),
        max(last - first for _, first, last in spans),
    )


def _is_for(model: Any) -> bool:
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        model.device.type == "cuda"
        and model.dtype in _TYPES
        and head % 8 == 0
        and head <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(model.device) >= _SINCE
    )


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    if documents is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **more
        )
        return found
    return varlen_attention(query, key, value, documents, scaling), None


AttentionInterface.register(NAME, _attention)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of queries [n, heads, L, head size] and keys and values of as many heads or fewer.

    Returns:
        [n, L, heads, head size]: the heads of a place next to each other.
    """
    num_rows, _, length, _ = query.shape
    # [n, heads, L, head size] -> [n L, heads, head size].
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    starts, longest = documents.starts, documents.longest
    out = varlen_attn(
        *flat, starts, starts, longest, longest,
        scale=scale, window_size=(-1, 0), enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out.unflatten(0, (num_rows, length))
