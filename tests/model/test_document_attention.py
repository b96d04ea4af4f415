"""Attention by blocks of queries: torch's own figures, and nothing across documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from raylm.model.build import llama_config
from raylm.model.document_attention import document_attention, spans_for, use_document_attention
from raylm.model.shapes import DecoderShape

# Rows of 300 tokens: one document, three (the second shorter than a block), two and padding.
SEGMENTS = np.stack([np.repeat(*pair) for pair in (
    ([1], [300]), ([1, 2, 3], [140, 3, 157]), ([1, 2, 0], [128, 129, 43]),
)]).astype(np.int32)  # fmt: skip
SPANS = [
    (0, 0, 300), (1, 0, 140), (1, 140, 143), (1, 143, 300),
    (2, 0, 128), (2, 128, 257), (2, 257, 300),
]  # fmt: skip


def tensors() -> list[torch.Tensor]:
    """Query, key and value as transformers hands them over: heads next to each other."""
    torch.manual_seed(0)
    return [torch.randn(3, 300, 2, 8).transpose(1, 2).requires_grad_() for _ in range(3)]


def test_output_and_gradients_are_those_of_a_masked_softmax() -> None:
    inputs, grad = tensors(), torch.randn(3, 2, 300, 8)
    segments = torch.from_numpy(SEGMENTS)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    plain = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)
    found = document_attention(*inputs, SPANS, 0.3)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(plain, inputs, grad)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, grad), expected, rtol=1e-4, atol=1e-5
    )


def test_in_bfloat16_it_is_as_exact_as_the_kernel_of_torch() -> None:
    wide = [tensor.detach().bfloat16().double() for tensor in tensors()]
    grad = torch.randn(3, 2, 300, 8).bfloat16()
    segments = torch.from_numpy(SEGMENTS)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()

    def masked(*inputs: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)

    def everything(attention: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in wide]
        out = attention(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]

    exact = everything(masked, torch.double)
    theirs = everything(masked, torch.bfloat16)
    ours = everything(lambda *inputs: document_attention(*inputs, SPANS, 0.3), torch.bfloat16)
    for own, their, right in zip(ours, theirs, exact, strict=True):
        assert own.dtype == torch.bfloat16
        error, other = ((each.double() - right).norm() / right.norm() for each in (own, their))
        assert error < max(1.5 * other, 4e-3)


def test_another_document_changes_no_bit() -> None:
    inputs = [tensor.detach() for tensor in tensors()]
    before = document_attention(*inputs, SPANS, 0.3)
    for tensor in inputs:
        tensor[1, :, 140:143] = 1e4
    after = document_attention(*inputs, SPANS, 0.3)
    rest = np.r_[0:140, 143:300]
    assert torch.equal(before[1][:, rest], after[1][:, rest])
    assert torch.equal(before[[0, 2]], after[[0, 2]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 4, 2, 300), 50, {}))


def test_spans_are_the_runs_of_segments() -> None:
    model = llama()
    assert spans_for(model, SEGMENTS, apart=True) is None
    use_document_attention(model)
    assert spans_for(model, SEGMENTS, apart=True) == SPANS
    assert spans_for(model, SEGMENTS, apart=False) == [(row, 0, 300) for row in range(3)]
    short = np.repeat(np.arange(1, 31), 10)[None].astype(np.int32)
    assert spans_for(model, short, apart=True) is None
    assert spans_for(model.bfloat16(), SEGMENTS, apart=True) == SPANS
    assert spans_for(model.half(), SEGMENTS, apart=True) is None


@pytest.mark.parametrize("saved", [False, True])
def test_a_llama_with_grouped_heads_learns_the_same(saved: bool) -> None:
    ids, model = torch.randint(0, 50, (3, 300)), llama().train()
    segments = torch.from_numpy(SEGMENTS)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    if saved:
        model.gradient_checkpointing_enable()

    def gradients(**how: object) -> list[torch.Tensor]:
        loss = model(input_ids=ids, use_cache=False, **how).logits.logsumexp(-1).sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    plain = gradients(attention_mask=mask)
    use_document_attention(model)
    torch.testing.assert_close(gradients(spans=SPANS), plain, rtol=1e-3, atol=1e-4)
    # A mask still counts where there are no spans.
    torch.testing.assert_close(gradients(attention_mask=mask), plain)
    assert "raylm" not in model.config.to_json_string()


@pytest.mark.parametrize("more", [{"attention_dropout": 0.1}, {"sliding_window": 64}])
def test_attention_that_is_more_than_that_stays_transformers_own(more: dict[str, float]) -> None:
    model = llama()
    for name, value in more.items():
        setattr(model.config, name, value)
    use_document_attention(model)
    assert spans_for(model, SEGMENTS, apart=True) is None
