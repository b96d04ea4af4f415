"""Llama's RMSNorm for CPUs: fewer passes over the activations, forward and backward.

Between the matrix products of a small model a CPU waits for memory. transformers' norm is a
dozen elementwise operations with their gradients, each of which reads and writes all of it.
In bfloat16 the arithmetic is float32, as transformers' own; kept is the bfloat16 input alone.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

_DTYPES = (torch.float32, torch.bfloat16)


def use_fused_norm(model: Any) -> None:
    """Let the norms of a transformers Llama compute through this module, where it is float32 or
    bfloat16."""
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = MethodType(_forward, module)


def _forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    if hidden.dtype not in _DTYPES or module.weight.dtype != hidden.dtype:
        normed: torch.Tensor = type(module).forward(module, hidden)
        return normed
    return rms_norm(hidden, module.weight, module.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        wide = _wide(hidden)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        context.save_for_backward(hidden, weight, inverse)
        return (wide * inverse).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, inverse = context.saved_tensors
        wide, wide_weight, wide_grad = _wide(hidden), _wide(weight), _wide(grads[0])
        normed = wide * inverse
        by_weight = wide_grad * normed
        # d hidden = inverse (g w - normed mean(g w normed)).
        along = (by_weight @ wide_weight).div_(-hidden.shape[-1])[..., None]
        grad = (wide_grad * wide_weight).addcmul_(normed, along).mul_(inverse)
        by_weight = by_weight.flatten(0, -2).sum(0)
        return grad.to(hidden.dtype), by_weight.to(weight.dtype), None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm (arXiv 1910.07467) of `hidden` [..., width]."""
    result: torch.Tensor = _RmsNorm.apply(hidden, weight, eps)
    return result
