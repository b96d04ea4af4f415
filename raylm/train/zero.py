"""The DeepSpeed configuration that a `train` section stands for: a pure function."""

from __future__ import annotations

from typing import Any

from raylm.config.train import TrainConfig
from raylm.train.shares import num_micro_batches

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced, and parameters that are gathered, at a time."""
MUON_BUCKET_ELEMENTS = 50_000_000
"""Elements of the matrices that Muon puts together at a time."""
LEAST_SCALE = 1
"""Of losses in fp16."""
_SCALING = {
    # Dynamic. DeepSpeed's second chance at the same scale (hysteresis) would cost every run's
    # start another skipped step.
    "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1,
    "min_loss_scale": LEAST_SCALE,
}  # fmt: skip


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own JSON, for `world_size` workers.

    The loss is scaled by raylm (divided by the target tokens of the whole step), the rate is
    set by raylm's schedule, so that neither appears here.
    """
    accumulation = num_micro_batches(config.global_batch, config.micro_batch, world_size)
    zero: dict[str, Any] = {
        "stage": config.zero,
        # One stream on CPUs: overlapping only costs; and one bucket order, so that a
        # resumed run adds in the same order.
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if config.offload != "none":
        zero["offload_optimizer"] = _on_host(config)
    if config.offload == "all":
        zero["offload_param"] = _on_host(config)
    if config.optimizer.name == "muon":
        # Muon puts a group's matrices together: ZeRO-3 must not cut groups further.
        zero["sub_group_size"] = 10**12
    return {
        "train_batch_size": accumulation * config.micro_batch * world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": _SCALING | {"enabled": config.precision == "fp16"},
        "zero_optimization": zero,
        # Its own CPU Adam would be compiled at first use, for over a minute.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def _on_host(config: TrainConfig) -> dict[str, Any]:
    # Pinned memory is what a GPU copies from at full speed; without one there is none to pin.
    return {"device": "cpu", "pin_memory": config.gpus_per_worker > 0}


def state_files(config: TrainConfig, world_size: int) -> tuple[str, ...]:
    """What DeepSpeed writes of a checkpoint, on `world_size` ranks together."""
    ranks = range(world_size)
    if config.zero == 0:
        return ("mp_rank_00_model_states.pt",)
    half = "bf16_" if config.precision == "bf16" else ""
    shares = tuple(f"{half}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks)
    if config.zero < 3:
        return ("mp_rank_00_model_states.pt", *shares)
    return (*(f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks), *shares)
