"""One rank's model, optimizer, data and books; `loop` says in which order they are used."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed

from raylm.config.train import TrainConfig
from raylm.data.order import sample_indices
from raylm.data.shards import Batch, PackedSplit
from raylm.errors import TrainError
from raylm.model.build import build_model, save_model
from raylm.model.folder import special_token_ids
from raylm.stage import CHECKPOINTS
from raylm.train.checkpoint import Checkpointer, Progress, newest_sound
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, MetricsLog
from raylm.train.objective import next_token_loss
from raylm.train.rss import max_over_ranks, peak_memory_bytes, reset_peak_rss
from raylm.train.schedule import fix_horizon, lr_factor
from raylm.train.zero import deepspeed_config

_HELD_OUT_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One optimizer step, over all ranks."""

    loss: float
    """Nats per target token."""
    grad_norm: float | None
    """Before clipping; None where DeepSpeed does not tell."""
    lr: float
    num_tokens: int


class Worker:
    """One rank of a training run."""

    def __init__(self, job: Job, *, rank: int, world_size: int) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        reset_peak_rss()
        self._job, self._config = job, job.config
        self._rank, self._world_size = rank, world_size
        self._data = PackedSplit.open(job.dataset, "train")
        self._held_out = PackedSplit.open(job.dataset, "held_out")
        torch.manual_seed(job.seed)
        model = build_model(
            job.model,
            seq_len=self._data.seq_len,
            vocab_size=self._data.vocab_size,
            special_ids=special_token_ids(job.dataset / "tokenizer"),
        )
        self._hf_config = model.config
        if job.config.activation_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        self._zero = deepspeed_config(job.config, world_size)
        # An all-reduce for inference alone, which DeepSpeed would compile at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=_optimizer(model, job.config), config=self._zero
        )
        self._checkpoints = Checkpointer(
            job.work / CHECKPOINTS,
            rank=rank,
            keep=job.config.checkpoint.keep,
            barrier=torch.distributed.barrier,
        )
        self.done = 0
        self._horizon = job.config.steps
        self._elapsed_s = 0.0
        self._first_step_s: float | None = None
        self._log: MetricsLog | None = None

    # State -------------------------------------------------------------------------------

    def restore(self) -> None:
        """Go on from the newest sound checkpoint, if there is one and resuming is asked."""
        found = None
        if self._job.resume:
            found = newest_sound(
                self._checkpoints.folder,
                config_hash=self._job.config_hash,
                world_size=self._world_size,
            )
        if found is not None:
            self._engine.load_checkpoint(str(found.state.parent), tag=found.state.name)
            rng = np.load(found.state / f"rng-{self._rank}.npy", allow_pickle=False)
            torch.set_rng_state(torch.from_numpy(rng))
            self.done = found.progress.step
            self._horizon = found.progress.horizon
            self._elapsed_s = found.progress.elapsed_s
        if self._rank == 0:
            self._log = MetricsLog(self._job.work / METRICS, from_step=self.done)

    def save(self) -> None:
        """Write a checkpoint; all ranks together."""
        self._checkpoints.save(
            Progress(
                step=self.done,
                horizon=self._horizon,
                elapsed_s=self._elapsed_s,
                config_hash=self._job.config_hash,
                world_size=self._world_size,
            ),
            self._write_state,
        )

    def _write_state(self, folder: Path) -> None:
        # DeepSpeed makes <save_dir>/<tag>: the draft's state folder is the tag.
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        np.save(folder / f"rng-{self._rank}.npy", torch.get_rng_state().numpy())

    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self._horizon is not None and self.done >= self._horizon

    # Work --------------------------------------------------------------------------------

    def step(self) -> StepFigures:
        """One optimizer step on this rank's share of the next global batch."""
        config = self._config
        rows = sample_indices(
            self._job.seed,
            self._data.num_samples,
            self.done * config.global_batch,
            config.global_batch,
        )
        num_targets = self._data.num_targets(rows)
        lr = config.optimizer.lr * lr_factor(config.schedule, self.done, self._horizon)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        accumulation = self._zero["gradient_accumulation_steps"]
        total = torch.zeros(1, dtype=torch.float64)
        for index in range(accumulation):
            # Micro-batch i of rank r: the global batch is cut the same way for any i, r.
            start = (index * self._world_size + self._rank) * config.micro_batch
            batch = self._data.batch(rows[start : start + config.micro_batch])
            nll = self._nll(batch)
            # DeepSpeed divides by ranks and accumulation; the sum is over targets.
            self._engine.backward(nll * (self._world_size * accumulation / num_targets))
            total += nll.detach().double().cpu()
            self._engine.step()
        torch.distributed.all_reduce(total)
        self.done += 1
        norm = self._engine.get_global_grad_norm()
        return StepFigures(
            loss=float(total) / num_targets,
            grad_norm=None if norm is None else float(norm),
            lr=lr,
            num_tokens=int(rows.size) * self._data.seq_len,
        )

    def _nll(self, batch: Batch) -> torch.Tensor:
        # ZeRO-3 counts micro-batches in the engine's own forward pass, and has the head's
        # weight only within it; below, the fused loss may look into the module.
        whole = self._config.zero < 3
        return next_token_loss(
            self._engine.module if whole else self._engine,
            batch,
            mask_documents=self._config.mask_documents,
            whole_head=whole,
        )

    def clock(self, seconds: float) -> None:
        """Count the time of a step; under a time limit, fix the horizon once it is known."""
        if self._first_step_s is None:
            self._first_step_s = seconds
        self._elapsed_s += seconds
        if self._horizon is None:
            assert self._config.time_s is not None
            horizon = fix_horizon(
                self.done, self._elapsed_s - self._first_step_s, self._first_step_s,
                self._config.time_s,
            )  # fmt: skip
            agreed = int(self.agree(float(horizon or 0)))
            self._horizon = agreed or None

    def agree(self, value: float) -> float:
        """The first rank's value, on every rank."""
        box = torch.tensor([value], dtype=torch.float64)
        torch.distributed.broadcast(box, 0)
        return float(box)

    def validate(self) -> float:
        """Loss on a fixed part of the held-out split, nats per target token."""
        rows = np.arange(min(_HELD_OUT_SAMPLES, self._held_out.num_samples))
        mine = rows[self._rank :: self._world_size]
        figures = torch.zeros(2, dtype=torch.float64)
        self._engine.eval()
        with torch.no_grad():
            # ZeRO-3 gathers parameters in every forward: all ranks take the same number.
            for start in range(0, -(-len(rows) // self._world_size), self._config.micro_batch):
                part = mine[start : start + self._config.micro_batch]
                batch = self._held_out.batch(part if len(part) else rows[:1])
                nll = self._nll(batch)
                if len(part):
                    figures[0] += float(nll)
                    figures[1] += int((batch.targets >= 0).sum())
        self._engine.train()
        torch.distributed.all_reduce(figures)
        loss = float(figures[0] / figures[1])
        self._write(held_out_loss=loss)
        return loss

    def log(self, figures: StepFigures) -> None:
        """Write a step's line."""
        self._write(
            loss=figures.loss,
            lr=figures.lr,
            grad_norm=figures.grad_norm,
            tokens=figures.num_tokens * self.done,
            elapsed_s=round(self._elapsed_s, 3),
            tokens_per_s=round(figures.num_tokens * self.done / self._elapsed_s, 1),
            horizon=self._horizon,
        )

    def _write(self, **values: Any) -> None:
        if self._log is not None:
            self._log.write(step=self.done, time=round(time.time(), 3), **values)

    def check_finite(self, figures: StepFigures) -> None:
        """End a run that cannot recover.

        Raises:
            TrainError: loss or gradient norm is no finite number, with the step.
        """
        norm = figures.grad_norm
        if math.isfinite(figures.loss) and (norm is None or math.isfinite(norm)):
            return
        self.log(figures)
        raise TrainError(
            f"at step {self.done} the loss is {figures.loss:g} and the gradient's norm {norm}",
            code="train-not-finite",
            hint="lower train.optimizer.lr, or train in fp32; the last checkpoint is kept",
        )

    def write_model(self) -> None:
        """Write the model folder from the first rank; ZeRO-3 shards are gathered for it."""
        parameters = list(self._engine.module.parameters())
        gather = self._config.zero == 3
        with deepspeed.zero.GatheredParameters(parameters, enabled=gather):
            if self._rank == 0:
                self._job.result.mkdir(parents=True, exist_ok=True)
                save_model(
                    self._hf_config,
                    self._engine.module.state_dict(),
                    self._job.dataset / "tokenizer",
                    self._job.result,
                )
        torch.distributed.barrier()

    def close(self) -> None:
        """Write the fullest worker's peak of memory; close the log and the process group."""
        self._write(peak_memory_bytes=max_over_ranks(peak_memory_bytes()))
        if self._log is not None:
            self._log.close()
        self._engine.destroy()


def _optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with decay on matrices only."""
    options = config.optimizer
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
