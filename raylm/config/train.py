"""The `train` section: how long, how fast, on how many workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raylm.config.section import OUTSIDE_KEY, Section

ObjectiveName = Literal["causal", "sft", "seq2seq", "mlm", "classify", "dpo"]
TrackerName = Literal["mlflow", "trackio"]


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
    """How weights follow their gradients."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw: Loshchilov and Hutter, arXiv 1711.05101. muon: the matrices of hidden layers follow
    their orthogonalized momentum (K. Jordan and others, 2024), each step scaled to the size that
    AdamW's usually has (arXiv 2502.16982); embeddings, heads, norms and biases follow AdamW."""
    lr: float = Field(3e-3, gt=0, le=1)
    """Peak learning rate."""
    muon_lr: float | None = Field(None, gt=0, le=1)
    """muon: the peak rate of its matrices; None takes `lr`."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """muon: how much of the mean gradient is kept from step to step."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Applied to matrices, not to norms and biases."""
    clip_norm: float = Field(1.0, ge=0)
    """Global gradient norm at most; 0 is off."""

    @model_validator(mode="after")
    def _is_used(self) -> OptimizerConfig:
        if self.name == "adamw" and (self.muon_lr is not None or self.muon_momentum != 0.95):
            raise ValueError("muon_lr and muon_momentum say nothing to adamw; set name to muon")
        return self

    def key(self) -> dict[str, Any]:
        """As every section's; without what is Muon's, as before there was a choice."""
        found = super().key()
        if self.name == "adamw":
            for name in ("name", "muon_lr", "muon_momentum"):
                del found[name]
        return found


class ScheduleConfig(Section):
    """Learning rate over the run, as fractions of its horizon."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """How it falls after the warm-up. cosine, linear: over all of the rest, to `floor`; wsd: it
    stays, then falls linearly (arXiv 2404.06395); constant: it stays."""
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
    """Checkpoints of the lowest held-out loss that are kept beside the newest. Each checkpoint is
    then validated before it is saved or, with `validate_aside`, beside the training."""
    upload: Annotated[bool, OUTSIDE_KEY] = True
    """Where the store is a bucket, copy complete checkpoints there while the training goes on,
    so that another machine can take it over."""
    upload_wait_s: Annotated[float, OUTSIDE_KEY] = Field(60.0, ge=0)
    """Seconds that a run which ends before its time waits for the last upload."""
    grace_s: Annotated[float, OUTSIDE_KEY] = Field(30.0, ge=0)
    """Seconds for a last checkpoint when the run is told to end (SIGTERM, Ctrl-C, preemption)."""


class GuardConfig(Section):
    """What is done about a step that went wrong: the run goes back, and its samples are skipped."""

    spike_sigma: float = Field(10.0, ge=0)
    """A loss so many deviations above those of the last 64 steps is a spike; 0 only looks for
    losses and gradients that are no finite numbers."""
    max_rollbacks: int = Field(3, ge=0)
    """Windows of samples that are skipped within 1,000 steps before the run gives up."""


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


class AsideConfig(Section):
    """Validate each checkpoint beside the training, in a Ray task; a checkpoint that comes while
    another is looked at is left out."""

    num_cpus: float = Field(1.0, ge=0)
    """CPUs of the cluster that are kept for it; 0 shares the workers', which slows them."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that are kept for it; without one it works on CPUs."""


Workers = Annotated[int, Field(ge=0)]


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
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Of weights, activations and gradients; master weights and optimizer are fp32. fp16: with
    dynamic loss scaling, on GPUs. auto: bf16 on GPUs that have units for it, on CPUs the one of
    fp32 and bf16 whose matrix products are measured to be faster; chosen once for a run."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is partitioned over the workers."""
    offload: Annotated[Literal["none", "optimizer", "all"], OUTSIDE_KEY] = "none"
    """What is kept in the host's memory instead of a GPU's. optimizer: its state and step (zero 1
    to 3); all: the parameters too, fetched layer by layer (zero 3). On CPUs it saves nothing."""
    compile: bool = False
    """Compile the model's layers with torch.compile at the first step (zero 0 to 2), which takes up
    to minutes, and on CPUs gains next to nothing. It needs a C++ compiler."""
    liger: bool | None = None
    """Liger's GPU kernels for norms, rotary positions and gated layers (arXiv 2410.10989), which
    change the last bits of a result. None takes them where workers have GPUs, the package is
    installed and knows the model; true is an error where they cannot be had."""
    workers: Annotated[Workers | WorkerRange, OUTSIDE_KEY] = 2
    """Ray Train workers, each a rank of DeepSpeed: a number, or {min, max} for a run that goes on
    with fewer when a node is lost and with more when one comes. 0 trains in this process, without
    workers, for breakpoints and small machines; the losses are those of one worker."""
    max_failures: Annotated[int, OUTSIDE_KEY] = Field(3, ge=0)
    """Times that lost workers are replaced without a step of progress in between."""
    replace_s: Annotated[float, OUTSIDE_KEY] = Field(300.0, ge=0)
    """Seconds to wait for nodes, after a loss has left less room than the run needs."""
    hang_s: Annotated[float, OUTSIDE_KEY] = Field(120.0, ge=0)
    """Seconds without a sign of life, or without a move of any worker (ten steps if that is
    longer), after which a worker counts as hung, is named and replaced; 0 is off."""
    guard: GuardConfig = GuardConfig()
    cpus_per_worker: Annotated[float, OUTSIDE_KEY] = Field(1.0, gt=0)
    threads_per_worker: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """None takes this node's cores divided by its workers."""
    gpus_per_worker: Annotated[float, OUTSIDE_KEY] = Field(0.0, ge=0)
    check_memory: Annotated[bool, OUTSIDE_KEY] = True
    """Refuse to start workers that will need more memory than they have (docs/plan.md)."""
    check_disk: Annotated[bool, OUTSIDE_KEY] = True
    """Refuse to start a training whose checkpoints and model the disk does not hold."""
    mask_documents: bool = True
    """A token attends only to its own document."""
    activation_checkpointing: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: Annotated[CheckpointConfig, OUTSIDE_KEY] = CheckpointConfig()
    result: Literal["last", "best"] = "last"
    """What the written model is. last: after the last step; best: the checkpoint with the lowest
    held-out loss of those that `checkpoint.keep_best` keeps, or the last step if its loss is no
    higher."""
    validate_every: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """Steps between looks at the held-out split; None looks only at the end."""
    validate_aside: Annotated[AsideConfig | None, OUTSIDE_KEY] = None
    """Look at the held-out split at each checkpoint, off the critical path; None looks in the
    loop alone."""
    log_every: Annotated[int, OUTSIDE_KEY] = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""
    trackers: Annotated[tuple[TrackerName, ...], OUTSIDE_KEY] = ()
    """Where metrics go beside metrics.jsonl and TensorBoard files. mlflow: to MLFLOW_TRACKING_URI,
    else a SQLite store in the run's folder; trackio: as its TRACKIO_ variables say, else likewise.
    Each needs its extra (`pip install 'raylm[mlflow]'`)."""

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
        if self.validate_aside is not None and self.is_alone:
            raise ValueError("validate_aside runs in a Ray task, which workers: 0 does without")
        if isinstance(self.workers, WorkerRange):
            return self
        step = self.max_workers * self.micro_batch
        if self.global_batch % step:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of workers={self.workers} "
                f"x micro_batch={self.micro_batch}; the nearest is "
                f"{max(step, round(self.global_batch / step) * step)}"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> TrainConfig:
        for conflict in _conflicts(self):
            raise ValueError(conflict)
        return self

    @property
    def is_alone(self) -> bool:
        """Whether the training runs in the driver's own process."""
        return self.workers == 0

    @property
    def max_workers(self) -> int:
        """The most ranks that may run."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else max(1, self.workers)

    @property
    def min_workers(self) -> int:
        """The fewest ranks that the run goes on with."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else max(1, self.workers)

    def key(self) -> dict[str, Any]:
        """As every section's; without what is not asked for, as before it could be."""
        found = super().key()
        if self.objective is None:
            del found["objective"]
        if self.objective != "dpo" and self.dpo_beta == 0.1:
            del found["dpo_beta"]
        if self.lora is None:
            del found["lora"]
        if not self.compile:
            del found["compile"]
        if self.liger is None:
            del found["liger"]
        if self.result == "last":
            del found["result"]
        else:
            # Among which checkpoints the best is chosen is of no matter to the last.
            found["checkpoint"] = {
                "every_steps": self.checkpoint.every_steps,
                "every_s": None if self.checkpoint.every_steps else self.checkpoint.every_s,
                "aside": self.validate_aside is not None,
            }
        return found


def _conflicts(config: TrainConfig) -> Iterator[str]:
    """What does not go together, each with what would."""
    if config.offload == "optimizer" and config.zero == 0:
        yield "offload=optimizer moves what zero=0 does not partition; set zero to 1, 2 or 3"
    if config.offload == "all" and config.zero != 3:
        yield f"offload=all needs zero=3, not {config.zero}; offload=optimizer goes with 1 to 3"
    if config.precision == "fp16" and not config.gpus_per_worker:
        yield "precision=fp16 is for GPUs (gpus_per_worker is 0); on CPUs set bf16, fp32 or auto"
    if config.precision == "fp16" and config.zero == 0:
        yield "precision=fp16 needs zero=1, 2 or 3, whose loss scale starts low enough and is told"
    if config.liger and not config.gpus_per_worker:
        yield "liger=true is for GPUs (gpus_per_worker is 0); on CPUs raylm has kernels of its own"
    if config.result == "best" and not config.checkpoint.keep_best:
        yield "result=best is one of the best checkpoints; set checkpoint.keep_best to 1 or more"
    if config.compile and config.zero == 3:
        yield "compile does not go with zero=3, which gathers weights inside layers; set zero to 2"
    if config.optimizer.name == "muon" and config.offload != "none":
        yield "optimizer.name=muon orthogonalizes on the device; set offload to none, or use adamw"
    if config.optimizer.name == "muon" and config.lora is not None:
        yield "optimizer.name=muon is for whole matrices, lora trains thin ones; use adamw"
