"""Attention of documents laid end to end. The kernel runs on GPUs alone: here a loop over the
documents stands for it, called as the kernel is, by its own signature.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import LlamaForCausalLM

from raylm.model import varlen_attention as module
from raylm.model.build import llama_config
from raylm.model.shapes import DecoderShape
from raylm.model.varlen_attention import Documents, documents_for, use_varlen_attention

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 0, 0]], np.int32)
STARTS, LONGEST = [0, 3, 5, 6, 12, 14, 16, 18], 6


def looped(*args: Any, **options: Any) -> torch.Tensor:
    """What the kernel computes, document by document."""
    bound = inspect.signature(varlen_attn).bind(*args, **options)
    bound.apply_defaults()
    call = bound.arguments
    assert call["cu_seq_q"] is call["cu_seq_k"]
    assert call["window_size"] == (-1, 0), "causal"
    out = torch.empty_like(call["query"])
    starts = call["cu_seq_q"].tolist()
    assert max(np.diff(starts)) == call["max_q"] == call["max_k"]
    for first, last in pairwise(starts):
        parts = [call[name][first:last].transpose(0, 1) for name in ("query", "key", "value")]
        out[first:last] = F.scaled_dot_product_attention(
            *parts, is_causal=True, scale=call["scale"], enable_gqa=call["enable_gqa"]
        ).transpose(0, 1)
    return out


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "varlen_attn", looped)
    monkeypatch.setattr(module, "_is_for", lambda model: True)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 4, 2, 300), 50, {}))


def test_documents_are_laid_end_to_end(on_gpu: None) -> None:
    model = llama()
    assert documents_for(model, SEGMENTS) is None, "its attention does not take them"
    use_varlen_attention(model)
    documents = documents_for(model, SEGMENTS)
    assert documents is not None
    assert (documents.starts.tolist(), documents.longest) == (STARTS, LONGEST)
    assert documents.starts.dtype == torch.int32
    assert documents_for(model, SEGMENTS[1:2]) is None, "plain causal attention is the same"


def test_a_llama_with_grouped_heads_scores_and_learns_as_with_a_mask(on_gpu: None) -> None:
    model = llama().train()
    ids = torch.randint(0, 50, SEGMENTS.shape)
    segments = torch.from_numpy(SEGMENTS)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()

    def gradients(**how: Any) -> list[torch.Tensor]:
        logits = model(input_ids=ids, use_cache=False, **how).logits
        return [logits, *torch.autograd.grad(logits.logsumexp(-1).sum(), [*model.parameters()])]

    plain = gradients(attention_mask=mask)
    use_varlen_attention(model)
    found = gradients(documents=Documents(torch.tensor(STARTS, dtype=torch.int32), LONGEST))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients(attention_mask=mask), plain, rtol=1e-3, atol=1e-5)


def test_it_is_for_16_bits_on_recent_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])

    class Loaded:
        device = torch.device("cuda", 0)
        dtype = torch.bfloat16
        config = llama().config

    assert module._is_for(Loaded())
    assert not module._is_for(llama().bfloat16()), "on a CPU"
    Loaded.dtype = torch.float32
    assert not module._is_for(Loaded())
    Loaded.dtype, capability[0] = torch.float16, (7, 5)
    assert not module._is_for(Loaded())
    capability[0], Loaded.config.head_dim = (9, 0), 12
    assert not module._is_for(Loaded()), "no multiple of 8"
