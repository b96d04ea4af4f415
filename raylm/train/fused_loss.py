"""Output head and cross-entropy in one piece, so that the logits never exist as a whole.

For small models with large vocabularies the logits ([tokens, vocabulary] in float32, and
again their gradient) are most of the memory traffic of a step. Here they are made a block of
rows at a time, turned into their own gradient in place, and used at once for the gradients of
hidden states and head, as Liger's fused linear cross-entropy does on GPUs (arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch

_BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Of logits at a time, [block, vocabulary] float32. A CPU core keeps them in its cache; a GPU needs
rows enough to be busy."""


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        block = max(16, _BLOCK_BYTES[head.device.type] // (4 * head.shape[0]))
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], block):
            rows = hidden[start : start + block]
            wanted = targets[start : start + block]
            logits = torch.log_softmax((rows @ head.T).float(), 1)
            index = wanted[:, None]
            total -= logits.gather(1, index).sum()
            # softmax - one_hot(target): the gradient of the summed loss.
            logits.exp_().scatter_add_(1, index, logits.new_full(index.shape, -1.0))
            gradient = logits.to(head.dtype)
            torch.mm(gradient, head, out=grad_hidden[start : start + block])
            if grad_head.dtype == gradient.dtype:
                grad_head.addmm_(gradient.T, rows)
            else:
                grad_head += (gradient.T @ rows).float()
        context.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return total

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_head = context.saved_tensors
        return grad_hidden * grads[0], grad_head * grads[0], None


def fused_loss(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats, a float32 scalar; its backward pass is already done.

    Args:
        hidden: [n, width], the last hidden states of the positions that have a target.
        head: [vocabulary, width].
        targets: [n] token ids.
    """
    result: torch.Tensor = _FusedLoss.apply(hidden, head, targets)
    return result
