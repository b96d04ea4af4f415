"""The DeepSpeed configuration that a `train` section stands for: a pure function."""

from __future__ import annotations

from typing import Any

from raylm.config.train import TrainConfig
from raylm.train.shares import num_micro_batches

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced, and parameters that are gathered, at a time."""


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own JSON, for `world_size` workers.

    The loss is scaled by raylm (divided by the target tokens of the whole step), the rate is
    set by raylm's schedule, so that neither appears here.
    """
    accumulation = num_micro_batches(config.global_batch, config.micro_batch, world_size)
    return {
        "train_batch_size": accumulation * config.micro_batch * world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {
            "stage": config.zero,
            # One stream on CPUs: overlapping only costs; and one bucket order, so that a
            # resumed run adds in the same order.
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
