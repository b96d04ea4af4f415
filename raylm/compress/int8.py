"""int8 weights of linear layers: symmetric, one scale per output channel, round to nearest.

What is not a linear layer's weight stays: norms as they are; embeddings, and a head tied to
them, rounded to bfloat16: a lookup gains no speed from integers, and a tied head is what the
likeliest token hangs on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raylm.errors import ModelError

_LEVELS = 127


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """`integers * scale` stands for the weight: int8 [out, in] and float32 [out, 1]."""

    integers: torch.Tensor
    scale: torch.Tensor

    def dequantized(self) -> torch.Tensor:
        """The float32 weight that the integers stand for."""
        return self.integers.float() * self.scale


def quantize_weight(weight: torch.Tensor, name: str = "weight") -> QuantizedWeight:
    """Round a [out, in] weight to int8, symmetric, per output channel.

    A channel of zeros keeps the scale 1, so that nothing divides by zero.

    Raises:
        ModelError: the weight holds values that are not finite.
    """
    weight = weight.float()
    if not torch.isfinite(weight).all():
        raise ModelError(f"{name} holds values that are not finite", code="model-not-finite")
    peak = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / _LEVELS, torch.ones_like(peak))
    integers = (weight / scale).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
    return QuantizedWeight(integers, scale)
