"""Llama's RMSNorm for CPUs: fewer passes over the activations, forward and backward.

Between the matrix products of a small model a CPU waits for memory. transformers' norm is a
dozen elementwise operations with their gradients, each of which reads and writes all of it.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def use_fused_norm(model: Any) -> None:
    """Let the norms of a transformers Llama compute through this module, where it is float32."""
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = MethodType(_forward, module)


def _forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    if hidden.dtype != torch.float32 or module.weight.dtype != torch.float32:
        normed: torch.Tensor = type(module).forward(module, hidden)
        return normed
    return rms_norm(hidden, module.weight, module.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        inverse = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        context.save_for_backward(hidden, weight, inverse)
        return (hidden * inverse).mul_(weight)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, inverse = context.saved_tensors
        normed = hidden * inverse
        by_weight = grads[0] * normed
        # d hidden = inverse (g w - normed mean(g w normed)).
        along = (by_weight @ weight).div_(-hidden.shape[-1])[..., None]
        grad = (grads[0] * weight).addcmul_(normed, along).mul_(inverse)
        return grad, by_weight.flatten(0, -2).sum(0), None


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm (arXiv 1910.07467) of `hidden` [..., width]."""
    result: torch.Tensor = _RmsNorm.apply(hidden, weight, eps)
    return result
