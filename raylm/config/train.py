"""The `train` section: how long, how fast, on how many workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raylm.config.section import OUTSIDE_KEY, Section

ObjectiveName = Literal["causal", "sft", "seq2seq", "mlm", "classify", "dpo"]


class LoraConfig(Section):
    """Train small matrices beside the model's own, which stay as they are (arXiv 2106.09685).
    They are added to the weights when the model is written."""

    rank: int = Field(8, ge=1)
    """Width of the matrices."""
    alpha: float = Field(16.0, gt=0)
    """What they add is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of their input that is dropped in training."""
    targets: tuple[str, ...] = ()
    """Which linear layers get them, by the end of their names (`q_proj`); none named: all but
    the output head."""


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
    keep_best: Annotated[int, OUTSIDE_KEY] = Field(0, ge=0)
    """Checkpoints of the lowest held-out loss that are kept beside the newest; each checkpoint is
    then validated before it is saved."""
    grace_s: Annotated[float, OUTSIDE_KEY] = Field(30.0, ge=0)
    """Seconds for a last checkpoint when the run is told to end (SIGTERM, Ctrl-C, preemption)."""


class GuardConfig(Section):
    """What is done about a step that went wrong: the run goes back, and its samples are skipped."""

    spike_sigma: float = Field(10.0, ge=0)
    """A loss so many deviations above those of the last 64 steps is a spike; 0 only looks for
    losses and gradients that are no finite numbers."""
    max_rollbacks: int = Field(3, ge=0)
    """Windows of samples that are skipped before the run gives up."""


class WorkerRange(Section):
    """An elastic number of workers: as many as the cluster holds at the time."""

    min: int = Field(1, ge=1)
    """Fewer than these are an error."""
    max: int = Field(ge=1)
    """More than these are never started."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


Workers = Annotated[int, Field(ge=1)]


class TrainConfig(Section):
    """How long, how fast, on how many workers."""

    objective: ObjectiveName | None = None
    """What is learned. causal: the next token; sft: the next token of answers; seq2seq: the
    target of a source; mlm: hidden tokens (BERT); classify: a text's class; dpo: to prefer the
    chosen answer (arXiv 2305.18290). None takes what data.format and the model are for."""
    dpo_beta: float = Field(0.1, gt=0)
    """dpo: how strongly the model is held to what it was at the start."""
    lora: LoraConfig | None = None
    """Train low-rank matrices only; None trains all weights."""
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
    workers: Annotated[Workers | WorkerRange, OUTSIDE_KEY] = 2
    """Ray Train workers, each a rank of DeepSpeed: a number, or {min, max} for a run that goes on
    with fewer when a node is lost and with more when one comes."""
    max_failures: Annotated[int, OUTSIDE_KEY] = Field(3, ge=0)
    """Times that lost workers are replaced without a step of progress in between."""
    hang_s: Annotated[float, OUTSIDE_KEY] = Field(120.0, ge=0)
    """Seconds without a sign of life after which a worker counts as hung, is named and replaced;
    0 is off."""
    guard: GuardConfig = GuardConfig()
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
        if isinstance(self.workers, WorkerRange):
            return self
        step = self.workers * self.micro_batch
        if self.global_batch % step:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of workers={self.workers} "
                f"x micro_batch={self.micro_batch}; the nearest is "
                f"{max(step, round(self.global_batch / step) * step)}"
            )
        return self

    @property
    def max_workers(self) -> int:
        """The most workers that may run."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    def key(self) -> dict[str, Any]:
        """As every section's; without what is not asked for, as before it could be."""
        found = super().key()
        if self.objective is None:
            del found["objective"]
        if self.objective != "dpo" and self.dpo_beta == 0.1:
            del found["dpo_beta"]
        if self.lora is None:
            del found["lora"]
        return found
