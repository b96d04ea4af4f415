"""The `train` section: how long, how fast, on how many workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raylm.config.section import OUTSIDE_KEY, Section


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

    lr: float = Field(3e-3, gt=0, le=1)
    """Peak learning rate."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Applied to matrices, not to norms and biases."""
    clip_norm: float = Field(1.0, ge=0)
    """Global gradient norm at most; 0 is off."""


class ScheduleConfig(Section):
    """Learning rate over the run, as fractions of its horizon."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """wsd: warm-up, stable, linear decay (arXiv 2404.06395)."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly."""
    decay: float = Field(0.4, ge=0, le=1)
    """wsd only: share of the steps in which it falls."""
    floor: float = Field(0.05, ge=0, le=1)
    """The last rate, as a fraction of the peak."""

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} and decay={self.decay} add up to more than 1")
        return self


class CheckpointConfig(Section):
    """When the state is saved, and how much is kept."""

    every_steps: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """None saves by time (`every_s`)."""
    every_s: Annotated[float, OUTSIDE_KEY] = Field(120.0, gt=0)
    """Seconds between checkpoints when `every_steps` is not set."""
    keep: Annotated[int, OUTSIDE_KEY] = Field(2, ge=1)
    """Newest complete checkpoints that are kept."""


class TrainConfig(Section):
    """How long, how fast, on how many workers."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; either this or `time_s`; 100 if neither is set."""
    time_s: float | None = Field(None, gt=0)
    """Seconds of training steps. The schedule's horizon is fixed once, from the first steps'
    speed, and stored with the run."""
    global_batch: int = Field(16, ge=1)
    """Sequences in one optimizer step, over all workers."""
    micro_batch: Annotated[int, OUTSIDE_KEY] = Field(8, ge=1)
    """Sequences in one forward pass of one worker."""
    precision: Literal["fp32", "bf16"] = "fp32"
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is partitioned over the workers."""
    workers: Annotated[int, OUTSIDE_KEY] = Field(2, ge=1)
    """Ray Train workers, each a rank of DeepSpeed."""
    cpus_per_worker: Annotated[float, OUTSIDE_KEY] = Field(1.0, gt=0)
    threads_per_worker: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """None takes this node's cores divided by its workers."""
    gpus_per_worker: Annotated[float, OUTSIDE_KEY] = Field(0.0, ge=0)
    check_memory: Annotated[bool, OUTSIDE_KEY] = True
    """Refuse to start workers that will need more memory than they have (docs/plan.md)."""
    mask_documents: bool = True
    """A token attends only to its own document."""
    activation_checkpointing: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: Annotated[CheckpointConfig, OUTSIDE_KEY] = CheckpointConfig()
    validate_every: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """Steps between looks at the held-out split; None looks only at the end."""
    log_every: Annotated[int, OUTSIDE_KEY] = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("time_s") is not None:
            return values
        return {**values, "steps": 100} if values.get("steps") is None else values

    @model_validator(mode="after")
    def _shapes_fit(self) -> TrainConfig:
        if self.steps is not None and self.time_s is not None:
            raise ValueError("set either steps or time_s, not both")
        step = self.workers * self.micro_batch
        if self.global_batch % step:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of workers={self.workers} "
                f"x micro_batch={self.micro_batch}; the nearest is "
                f"{max(step, round(self.global_batch / step) * step)}"
            )
        return self
