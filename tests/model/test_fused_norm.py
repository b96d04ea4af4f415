"""A norm of fewer passes: the figures of transformers' own."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from raylm.model.build import llama_config
from raylm.model.fused_norm import rms_norm, use_fused_norm
from raylm.model.shapes import DecoderShape


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6), (hidden, weight))


def test_a_llama_says_and_learns_the_same() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 4, 2, 64), 50, {})).train()
    ids = torch.randint(0, 50, (3, 50))

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = model(input_ids=ids, use_cache=False).logits
        loss = logits.logsumexp(-1).sum()
        return logits, list(torch.autograd.grad(loss, list(model.parameters())))

    plain = step()
    use_fused_norm(model)
    fused = step()
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[1], plain[1], rtol=1e-3, atol=1e-4)
    assert not all(map(torch.equal, fused[1], plain[1]))


def test_in_bfloat16_it_is_rounded_once() -> None:
    torch.manual_seed(0)
    wide = [torch.randn(64, 96), torch.rand(96) + 0.5, torch.randn(64, 96)]
    hidden, weight, grad = (tensor.bfloat16() for tensor in wide)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
        out = rms_norm(*inputs, 1e-6)
        return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]

    for found, exact in zip(gradients(torch.bfloat16), gradients(torch.double), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5)


def test_fp16_stays_with_transformers() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 4, 2, 64), 50, {})).half()
    ids = torch.randint(0, 50, (1, 9))
    plain = model(input_ids=ids).logits
    use_fused_norm(model)
    assert torch.equal(model(input_ids=ids).logits, plain)
