"""How long a training takes: the roofline of its arithmetic, and what of it is reached."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.train.plan.subject import Subject

# Model FLOP/s utilisation to reckon with. CPUs: benchmarks/plan_memory.py's model against a
# matrix product on the same core. GPUs: what nanochat and torchtitan report of one H100 at
# 0.1 to 8 billion parameters in bf16 (34-46 %), less what torch without fused kernels loses.
REACHED_CPU, REACHED_GPU = 0.6, 0.35


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps, tokens and hours of a run; None is unknown."""

    steps: int | None
    tokens: int | None
    epochs: float | None
    flops_per_token: int
    """Of the model's own work, forward and backward."""
    peak_flops: float | None
    """FLOP/s of all workers together."""
    roofline_tokens_per_s: float | None
    """The peak over the FLOPs, those of activation checkpointing included: the bound."""
    tokens_per_s: float | None
    """To reckon with: the share of the bound that such trainings reach."""
    train_s: float | None


def pace(
    subject: Subject,
    config: TrainConfig,
    *,
    worker_peak: float | None,
    num_samples: int | None,
) -> Pace:
    """The pace of a run.

    Args:
        worker_peak: FLOP/s of one worker's device.
        num_samples: sequences of the training split, if it is there.
    """
    flops = subject.flops_per_token
    # The forward pass is a third of the work, and done again.
    computed = flops * 4 / 3 if config.activation_checkpointing else flops
    peak = worker_peak * config.max_workers if worker_peak else None
    roofline = peak / computed if peak else None
    reached = REACHED_GPU if config.gpus_per_worker else REACHED_CPU
    rate = roofline * reached if roofline else None
    step_tokens = config.global_batch * subject.seq_len
    steps = config.steps
    if steps is None and rate is not None and config.time_s is not None:
        steps = max(1, int(config.time_s * rate / step_tokens))
    tokens = None if steps is None else steps * step_tokens
    seconds = config.time_s
    if seconds is None and rate is not None and tokens is not None:
        seconds = tokens / rate
    samples = None if steps is None else steps * config.global_batch
    return Pace(
        steps=steps,
        tokens=tokens,
        epochs=samples / num_samples if samples is not None and num_samples else None,
        flops_per_token=flops,
        peak_flops=peak,
        roofline_tokens_per_s=roofline,
        tokens_per_s=rate,
        train_s=seconds,
    )
