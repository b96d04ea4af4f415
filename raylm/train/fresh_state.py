"""An optimizer that has done nothing yet, which DeepSpeed's is not always.

In 16 bits without ZeRO, DeepSpeed (0.19.8, fp16/unfused_optimizer.py) makes the optimizer's state
by a step with gradients of zero: weights decay at the full rate, and AdamW believes that it has
averaged one gradient more than it has, so that its first steps are a quarter too short. ZeRO 1 to
3 and fp32 do not; with this, neither does ZeRO 0.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer


def forget_first_step(engine: Any) -> None:
    """Empty the state of a new engine's optimizer, and take float32 weights from the model's."""
    optimizer = engine.optimizer
    if not isinstance(optimizer, FP16_UnfusedOptimizer):
        return
    optimizer.optimizer.state.clear()
    with torch.no_grad():
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.copy_(weight)
