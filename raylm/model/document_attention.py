"""Causal attention within documents for CPUs: a block of queries against the keys it may see.

torch's kernel for CPUs takes 512 keys at a time and hides what lies ahead, so that rows of 512
tokens cost twice what they need, and several documents in a row need a mask as large as the
scores. Here queries go in blocks, as in FlashAttention-2 (arXiv 2307.08691): each is multiplied
with the keys of its own document up to its end and nothing else. The scores of a block stay in
the cache, and the backward pass makes them again.

In bfloat16 scores, softmax and the sums over blocks are float32, as in torch's kernel: queries and
keys are widened first, for torch has no product of bfloat16 on CPUs that keeps its float32 sums.
The other products are bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from raylm.model.spans import Span, set_attention, spans_of

NAME = "raylm_documents"
"""As a transformers `attn_implementation`."""
_BLOCK = 128
"""Queries at a time: fewer are slow products, more are multiplied with keys ahead of them."""
_DTYPES = (torch.float32, torch.bfloat16)
_SHORT = 48
"""Documents shorter than this on average are cheaper masked: each costs a few calls."""


def use_document_attention(model: Any) -> None:
    """Make a transformers model ready for `spans`; without them it works as before."""
    set_attention(model, NAME)


def spans_for(model: Any, segment_ids: np.ndarray, *, apart: bool) -> list[Span] | None:
    """The documents of rows [n, L] for the keyword argument `spans` of a model's forward pass.

    Args:
        apart: False takes each row as one document.

    Returns:
        None where the model cannot take them, or a mask is faster.
    """
    if model.config._attn_implementation != NAME or model.dtype not in _DTYPES:
        return None
    num_rows, length = segment_ids.shape
    if not apart:
        return [(row, 0, length) for row in range(num_rows)]
    spans = spans_of(segment_ids)
    return None if len(spans) * _SHORT > segment_ids.size else spans


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: list[Span] | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    if spans is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **more
        )
        return found
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return document_attention(query, key, value, spans, scale).transpose(1, 2), None


AttentionInterface.register(NAME, _attention)


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: list[Span],
        scale: float,
    ) -> torch.Tensor:
        out, wide = _like(query), (query.float(), key.float())
        for row, start, first, last in _blocks(spans):
            weights = _weights(*wide, row, start, first, last, scale).to(value.dtype)
            torch.bmm(weights, value[row, :, start:last], out=out[row, :, first:last])
        context.save_for_backward(query, key, value)
        context.spans, context.scale = spans, scale
        return out

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = context.saved_tensors
        scale, (grad,) = context.scale, grads
        wide = query.float(), key.float()
        grad_query = _like(query)
        grad_key, grad_value = _like(key, torch.float32), _like(value, torch.float32)
        document = None
        for row, start, first, last in _blocks(context.spans):
            weights = _weights(*wide, row, start, first, last, scale)
            wanted, asked = grad[row, :, first:last], query[row, :, first:last]
            keys = slice(start, last)
            # The last block of a document comes first, and reaches all of its keys.
            is_first, document = (row, start) != document, (row, start)
            taken = weights.to(value.dtype).transpose(1, 2)
            _add(grad_value[row, :, keys], taken, wanted, 1.0, is_first=is_first)
            scores = torch.bmm(wanted, value[row, :, keys].transpose(1, 2)).float()
            scores = torch._softmax_backward_data(scores, weights, 2, scores.dtype).to(key.dtype)
            grad_query[row, :, first:last].baddbmm_(
                scores, key[row, :, keys], beta=0.0, alpha=scale
            )
            _add(grad_key[row, :, keys], scores.transpose(1, 2), asked, scale, is_first=is_first)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _add(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float, *, is_first: bool
) -> None:
    """Add `scale` left @ right to a float32 total, or begin it."""
    if left.dtype == total.dtype:
        total.baddbmm_(left, right, beta=0.0 if is_first else 1.0, alpha=scale)
    elif is_first:
        torch.mul(torch.bmm(left, right), scale, out=total)
    else:
        total.add_(torch.bmm(left, right), alpha=scale)


def _blocks(spans: list[Span]) -> Iterator[tuple[int, int, int, int]]:
    """Row, start of the document, first and last query: the last block of a document first."""
    for row, start, end in spans:
        for first in reversed(range(start, end, _BLOCK)):
            yield row, start, first, min(first + _BLOCK, end)


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    row: int,
    start: int,
    first: int,
    last: int,
    scale: float,
) -> torch.Tensor:
    """What queries `first` to `last` of a row take of keys `start` to `last`: [heads, queries,
    keys], float32 as its arguments."""
    queries, keys = query[row, :, first:last], key[row, :, start:last]
    scores = query.new_empty(query.shape[1], last - first, last - start)
    torch.baddbmm(scores, queries, keys.transpose(1, 2), beta=0.0, alpha=scale, out=scores)
    ahead = query.new_full((last - first, last - first), -math.inf).triu_(1)
    scores[:, :, first - start :].add_(ahead)
    return torch.softmax(scores, 2)


def _like(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Empty, [n, heads, L, head size], with the heads of a place next to each other."""
    return torch.empty_like(
        tensor.transpose(1, 2), memory_format=torch.contiguous_format, dtype=dtype
    ).transpose(1, 2)


def document_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: list[Span], scale: float
) -> torch.Tensor:
    """Attention [n, heads, L, head size] of float32 or bfloat16 tensors of that shape.

    Args:
        spans: every place of every row is in exactly one.
    """
    result: torch.Tensor = _DocumentAttention.apply(query, key, value, spans, scale)
    return result
