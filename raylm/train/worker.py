"""One rank's model, optimizer, data and books; `loop` says in which order they are used."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from raylm.data.shards import Batch, PackedSplit
from raylm.errors import ArtifactError, TrainError
from raylm.model.build import build_model, save_model
from raylm.model.folder import special_token_ids
from raylm.model.fused_norm import use_fused_norm
from raylm.stage import CHECKPOINTS
from raylm.train.adapter import ADAPTER, write_adapter
from raylm.train.aside import looked_at, take_results
from raylm.train.checkpoint import (
    Checkpoint,
    Checkpointer,
    Progress,
    check_files,
    complete_checkpoints,
    newest_sound,
    note_held_out,
)
from raylm.train.compiled import compile_layers, uncompiled
from raylm.train.finite import all_finite, grad_norm
from raylm.train.fresh_state import forget_first_step
from raylm.train.gauges import Gauge, live_figures, read_gauge, sum_and_gather
from raylm.train.generators import (
    generator_files,
    load_generators,
    save_generators,
    seed_generators,
)
from raylm.train.guard import (
    HISTORY,
    recent_skips,
    verdict,
    verdict_on_weights,
    window_of,
)
from raylm.train.held_out import held_out_rows
from raylm.train.leak import check_paths
from raylm.train.liger import use_liger
from raylm.train.loop import Job
from raylm.train.lora import add_adapters, merged_state
from raylm.train.metrics import METRICS, MetricsLog
from raylm.train.notices import give_notice
from raylm.train.objectives.objective import head_of, objective_for
from raylm.train.optimizer import make_optimizer
from raylm.train.orders import Order, read_order
from raylm.train.peak import own_peak
from raylm.train.recent import Recent
from raylm.train.reference import reference_file, remember, rows_of_run
from raylm.train.reshard import load_resharded
from raylm.train.result import better, result_of
from raylm.train.rss import max_over_ranks, peak_memory_bytes, reset_peak_rss
from raylm.train.schedule import fix_horizon, lr_factor
from raylm.train.shares import share
from raylm.train.signs import Doing
from raylm.train.skips import SKIPPED, Skip, documents_of, read_skips, write_skip
from raylm.train.source import Source, SpecialTokens
from raylm.train.zero import LEAST_SCALE, deepspeed_config, state_files

_LEAK_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One optimizer step, over all ranks."""

    loss: float
    """Nats per target token."""
    grad_norm: float | None
    """Before clipping; None where the gradients did not fit (fp16)."""
    lr: float
    num_tokens: int
    ranks: list[Gauge]
    """What each rank saw."""
    flops: int | None
    """Of the model's own work; None is unknown."""
    loss_scale: float | None = None
    """fp16: what losses are multiplied by, after this step."""
    overflowed: bool = False
    """fp16: the gradients did not fit, the scale was lowered, and no weight was changed."""


class Worker:
    """One rank of a training run."""

    def __init__(
        self,
        job: Job,
        *,
        rank: int,
        world_size: int,
        doing: Callable[[Doing], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        reset_peak_rss()
        self._job, self._config = job, job.config
        self._rank, self._world_size, self._doing = rank, world_size, doing
        self._split = PackedSplit.open(job.dataset, "train")
        self._tokenizer = job.dataset / "tokenizer"
        special = SpecialTokens.of(self._tokenizer)
        self._data = Source(self._split, job.seed, job.objective, special)
        held_out = PackedSplit.open(job.dataset, "held_out")
        self._held_out = Source(held_out, job.seed, job.objective, special)
        self._objective = objective_for(job.objective)
        self._checkpoints = Checkpointer(
            job.work / CHECKPOINTS,
            rank=rank,
            keep=job.config.checkpoint.keep,
            keep_best=job.config.checkpoint.keep_best,
            barrier=torch.distributed.barrier,
        )
        self._resumes = job.resume
        self._log: MetricsLog | None = None
        self._engine: Any = None
        self._peak: float | None = None
        self._begin()

    def _begin(self) -> None:
        """Model, optimizer and books as they are before the first step."""
        job = self._job
        if self._engine is not None:
            self._engine.destroy()
        torch.manual_seed(job.seed)
        model = build_model(
            job.model,
            seq_len=self._split.seq_len,
            vocab_size=self._split.vocab_size,
            special_ids=special_token_ids(self._tokenizer),
            head=head_of(job.objective),
            labels=self._split.labels,
        )
        if job.config.lora is not None:
            add_adapters(model, job.config.lora)
        if not job.config.gpus_per_worker:
            use_fused_norm(model)
        elif job.config.liger is not False:
            use_liger(model, required=bool(job.config.liger))
        self._objective.prepare(model, job.config)
        self._hf_config = model.config
        if job.config.activation_checkpointing:
            model.gradient_checkpointing_enable()
        if job.config.compile:
            compile_layers(model)
        model.train()
        self._zero = deepspeed_config(job.config, self._world_size)
        # An all-reduce for inference alone, which DeepSpeed would compile at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        optimizer = make_optimizer(model, job.config)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._zero)
        forget_first_step(self._engine)
        self.done = 0
        self._horizon = job.config.steps
        self._horizon_at = 0
        self._elapsed_s = 0.0
        self._first_step_s: float | None = None
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._held_out_loss: tuple[int, float] | None = None
        self._recent = Recent()

    # State -------------------------------------------------------------------------------

    def restore(self, *, event: str | None = None) -> None:
        """Go on from the newest sound checkpoint, if there is one and resuming is asked.

        It may be of another number of workers: its state is then cut anew. `event` is what the
        log calls it.
        """
        if self._data.reference is None:
            self._remember_start()
        found = self._newest() if self._resumes else None
        if found is not None:
            self._load(found)
        self._skips = read_skips(self._job.work)
        if found is not None:
            self._check_place(found.progress)
        if self._rank == 0:
            if self._log is not None:
                self._log.close()
            self._log = MetricsLog(self._job.work / METRICS, from_step=self.done)
        self._write(
            event=event or ("start" if found is None else "resume"), workers=self._world_size
        )

    def _remember_start(self) -> None:
        """What the model says before its first step, where the objective asks for it."""
        ask = self._objective.at_start
        if ask is None:
            return
        config, work = self._config, self._job.work
        model = self._model
        rows = rows_of_run(self._data, config)
        remember(reference_file(work, "train"), ask, model, self._data, rows, config)
        rows = held_out_rows(self._held_out.split)
        remember(reference_file(work, "held_out"), ask, model, self._held_out, rows, config)

    def _check_place(self, progress: Progress) -> None:
        # Fewer skipped windows than the checkpoint knew would give it samples a second time.
        consumed = progress.consumed_samples
        if consumed is not None and int(self._numbers()[0]) < consumed:
            raise TrainError(
                f"the checkpoint of step {progress.step} had passed {consumed} samples, "
                f"{SKIPPED} in the run's folder accounts for {int(self._numbers()[0])}",
                code="train-skips-lost",
                hint=f"put {SKIPPED} back, or start anew with --no-resume",
            )

    def _newest(self) -> Checkpoint | None:
        # Hashing is the first rank's; the others take its word.
        found = None
        if self._rank == 0:
            found = newest_sound(
                self._checkpoints.folder,
                config_hash=self._job.config_hash,
                tell=lambda text: give_notice(self._job.work, text),
            )
        step = int(self.agree(float(found.progress.step if found else -1)))
        known = complete_checkpoints(self._checkpoints.folder)
        return next((c for c in known if c.progress.step == step), None)

    def _load(self, found: Checkpoint) -> None:
        progress = found.progress
        if progress.world_size == self._world_size:
            self._engine.load_checkpoint(str(found.state.parent), tag=found.state.name)
            load_generators(found.state, self._rank, gpu=self._is_on_gpu)
        else:
            load_resharded(
                self._engine,
                found.state,
                self._job.work / "reshard",
                rank=self._rank,
                barrier=torch.distributed.barrier,
            )
            # The old ranks' generators are nobody's now.
            seed_generators(self._job.seed, progress.step, self._rank)
        self.done = progress.step
        self._horizon, self._horizon_at = progress.horizon, progress.horizon_at
        self._elapsed_s = progress.elapsed_s
        self._losses.extend(progress.losses)
        if progress.held_out_loss is not None:
            self._held_out_loss = (progress.step, progress.held_out_loss)

    def save(self) -> bool:
        """Write a checkpoint; all ranks together.

        Returns:
            Whether: if not, `judge_weights` found them bad, and the run is back at its last one.
        """
        is_aside = self._config.validate_aside is not None
        wants_loss = self._config.checkpoint.keep_best and not is_aside
        if wants_loss and self._held_out_loss_now is None:
            self.validate()
        if not self.judge_weights():
            return False
        # Before their results are taken: what is neither there nor taken would be pruned unseen.
        spared = looked_at(self._job.work) if self._config.checkpoint.keep_best else ()
        self.take_aside()
        if self._log is not None:
            self._log.sync()
        self._checkpoints.save(
            Progress(
                step=self.done,
                horizon=self._horizon,
                horizon_at=self._horizon_at,
                elapsed_s=self._elapsed_s,
                config_hash=self._job.config_hash,
                world_size=self._world_size,
                losses=tuple(self._losses),
                held_out_loss=self._held_out_loss_now,
                consumed_samples=int(self._numbers()[0]),
            ),
            self._write_state,
            required=(
                *state_files(self._config, self._world_size),
                *generator_files(self._world_size, gpu=self._is_on_gpu),
            ),
            spared=spared,
        )
        return True

    @property
    def _held_out_loss_now(self) -> float | None:
        """Measured at this very step, if it was."""
        if self._held_out_loss is None or self._held_out_loss[0] != self.done:
            return None
        return self._held_out_loss[1]

    def _write_state(self, folder: Path) -> None:
        # DeepSpeed makes <save_dir>/<tag>: the draft's state folder is the tag.
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        save_generators(folder, self._rank, gpu=self._is_on_gpu)

    @property
    def _is_on_gpu(self) -> bool:
        return self._config.gpus_per_worker > 0

    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self._horizon is not None and self.done >= self._horizon

    def check_packing(self) -> None:
        """See on samples of the run that the model keeps the documents of a row apart.

        Raises:
            TrainError: it does not.
        """
        if not self._config.mask_documents:
            return
        # The same on all ranks: ZeRO-3 gathers parameters in every forward pass.
        batches = map(self._data.batch, self._micro_batches())
        with uncompiled(self._config):
            untried = check_paths(self._model, batches, self._objective, _LEAK_SAMPLES)
        if self._rank == 0 and untried:
            give_notice(
                self._job.work,
                f"whether documents of a row are kept apart (by {', '.join(untried)}) is not "
                "tried: no row of the next step has two with a target",
            )

    def _micro_batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """The samples of the next step as all ranks go through them."""
        config, numbers = self._config, self._numbers()
        for rank in range(self._world_size):
            for places in share(config.global_batch, config.micro_batch, self._world_size, rank):
                if len(places):
                    yield numbers[places]

    # Work --------------------------------------------------------------------------------

    def step(self) -> StepFigures:
        """One optimizer step on this rank's share of the next global batch."""
        config = self._config
        numbers = self._numbers()
        spent_s = self._data.spent_s
        num_targets = self._data.num_targets(numbers)
        factor = lr_factor(config.schedule, self.done, self._horizon, self._horizon_at)
        lr = config.optimizer.lr * factor
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        parts = share(config.global_batch, config.micro_batch, self._world_size, self._rank)
        total, norm = torch.zeros(1, dtype=torch.float64), None
        for places in parts:
            # A rank without a sample in this round goes through the motions for the others.
            with self._doing(Doing.READ):
                batch = self._data.batch(numbers[places] if len(places) else numbers[:1])
            nll = self._nll(batch) if len(places) else 0.0 * self._nll(batch)
            # DeepSpeed divides by ranks and accumulation; the sum is over targets.
            self._engine.backward(nll * (self._world_size * len(parts) / num_targets))
            total += nll.detach().double().cpu()
            norm = self._own_norm()
            self._engine.step()
        summed, ranks = sum_and_gather(
            total,
            read_gauge(self._data.spent_s - spent_s),
            rank=self._rank,
            world_size=self._world_size,
        )
        self.done += 1
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        num_tokens = config.global_batch * self._data.split.seq_len
        flops = self._job.flops
        scale, overflowed = self._scaling()
        return StepFigures(
            loss=summed / num_targets,
            grad_norm=None if norm is None or overflowed else float(norm),
            lr=lr,
            num_tokens=num_tokens,
            ranks=ranks,
            flops=flops.of_step(num_tokens, num_targets) if flops else None,
            loss_scale=scale,
            overflowed=overflowed,
        )

    def _own_norm(self) -> float | None:
        """The gradient's norm before a step, where DeepSpeed takes none: ZeRO 0 in fp32."""
        if self._config.zero or self._config.precision != "fp32":
            return None
        # Before the last micro-batch the ranks' gradients are not yet put together.
        if not self._engine.is_gradient_accumulation_boundary():
            return None
        return grad_norm(self._engine.module.parameters())

    def _scaling(self) -> tuple[float | None, bool]:
        """fp16: the loss scale, and whether the scaler has taken care of an overflow.

        The step counts and its samples are passed over, as with torch's own scaler; at the
        lowest scale an overflow is the guard's.
        """
        if self._config.precision != "fp16":
            return None, False
        scale = float(self._engine.optimizer.loss_scale)
        return scale, bool(self._engine.optimizer.overflow) and scale > LEAST_SCALE

    def _numbers(self) -> npt.NDArray[np.int64]:
        """The samples of the next step: those of the next window that is not skipped."""
        size = self._config.global_batch
        window = window_of(self.done, [skip.window for skip in self._skips])
        return np.arange(window * size, (window + 1) * size)

    @property
    def _model(self) -> Any:
        """What is called for a forward pass."""
        # ZeRO-3 counts micro-batches in the engine's own, and has the head's weight only within
        # it; below, the fused loss may look into the module.
        return self._engine.module if self._config.zero < 3 else self._engine

    def _nll(self, batch: Batch) -> torch.Tensor:
        return self._objective.loss(
            self._model,
            batch,
            mask_documents=self._config.mask_documents,
            whole_head=self._config.zero < 3,
        )

    def find_peak(self) -> None:
        """Find the peak FLOP/s of all workers together; unknown if one's is."""
        if self._job.flops is not None:
            torch.distributed.barrier()
            mine = own_peak(self._config)
            box = torch.tensor([math.nan if mine is None else mine], dtype=torch.float64)
            torch.distributed.all_reduce(box)
            self._peak = None if math.isnan(float(box)) else float(box)

    def clock(self, seconds: float, figures: StepFigures) -> None:
        """Count the time of a step; under a time limit, fix the horizon once it is known."""
        self._recent.note(seconds, figures.num_tokens, figures.flops, time.monotonic())
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
            if agreed:
                self._horizon, self._horizon_at = agreed, self.done

    def agree(self, value: float) -> float:
        """The first rank's value, on every rank."""
        box = torch.tensor([value], dtype=torch.float64)
        torch.distributed.broadcast(box, 0)
        return float(box)

    def validate(self) -> float | None:
        """Loss on a fixed part of the held-out split, nats per target token.

        None where that part has no target. One that is no finite number is not written down:
        `judge_weights` sends the run back for it.
        """
        started = time.perf_counter()
        config, rows = self._config, held_out_rows(self._held_out.split)
        figures = torch.zeros(2, dtype=torch.float64)
        self._engine.eval()
        with torch.no_grad(), uncompiled(config):
            for places in share(len(rows), config.micro_batch, self._world_size, self._rank):
                # ZeRO-3 gathers parameters in every forward: a rank without a row goes along.
                batch = self._held_out.in_order(rows[places] if len(places) else rows[:1])
                nll = self._nll(batch)
                if len(places):
                    figures[0] += float(nll)
                    figures[1] += self._held_out.num_targets_in_order(rows[places])
        self._engine.train()
        torch.distributed.all_reduce(figures)
        if not figures[1]:
            return None
        loss = float(figures[0] / figures[1])
        self._held_out_loss = (self.done, loss)
        if math.isfinite(loss):
            self._write(held_out_loss=loss, seconds=round(time.perf_counter() - started, 3))
        return loss

    def take_aside(self) -> None:
        """Write down what was found beside the training since the last time."""
        if self._log is not None:
            for found in take_results(self._job.work):
                self._log.write(time=round(time.time(), 3), aside=True, **asdict(found))
                note_held_out(self._checkpoints.folder, found.step, found.held_out_loss)

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
            **live_figures(
                figures.ranks,
                self._recent,
                self._peak,
                self._recent.left_s(
                    done=self.done,
                    horizon=self._horizon,
                    elapsed_s=self._elapsed_s,
                    time_s=self._config.time_s,
                ),
            ),
            **({} if figures.loss_scale is None else {"loss_scale": figures.loss_scale}),
            **({"overflowed": True} if figures.overflowed else {}),
        )

    def _write(self, **values: Any) -> None:
        if self._log is not None:
            self._log.write(step=self.done, time=round(time.time(), 3), **values)

    def judge(self, figures: StepFigures) -> bool:
        """Whether the step went well; if not, the run is back at its last checkpoint.

        Raises:
            TrainError: too many windows were skipped already.
        """
        why = verdict(self._losses, figures.loss, figures.grad_norm, self._config.guard)
        # Sums over ranks may differ in their last bit: one rank decides.
        if not self.agree(float(why is not None)):
            self._losses.append(figures.loss)
            return True
        self.log(figures)
        self._roll_back(why or "another rank saw it")
        return False

    def judge_weights(self) -> bool:
        """Whether what the steps made is good: weights, and the held-out loss if it is known.

        A gradient can be finite and its update not. If not, the run is back at its last
        checkpoint, as after a step that went wrong.

        Raises:
            TrainError: too many windows were skipped already.
        """
        finite = all_finite(self._engine.module.parameters())
        why = verdict_on_weights(finite, self._held_out_loss_now)
        if why is None:
            return True
        self._roll_back(why)
        return False

    def _roll_back(self, why: str) -> None:
        step = self.done - 1
        self.done = step
        rows = tuple(self._data.rows(self._numbers()).tolist())
        window = window_of(step, [skip.window for skip in self._skips])
        documents = documents_of(self._split, rows) if self._rank == 0 else ()
        num_recent = recent_skips(step, [skip.step for skip in self._skips])
        if num_recent >= self._config.guard.max_rollbacks:
            raise _gives_up(step, why, num_recent, documents)
        if self._rank == 0:
            write_skip(self._job.work, Skip(window, step, why, rows, documents))
        with self._doing(Doing.START):
            torch.distributed.barrier()
            self._begin()
            self._resumes = True
            self.restore(event="rollback")

    def wants(self) -> Order:
        """What the driver asks for; the first rank reads it, all agree."""
        order = read_order(self._job.work) if self._rank == 0 else Order.GO_ON
        return Order(int(self.agree(float(order))))

    def take_best(self) -> None:
        """After the last step: go back to the best checkpoint, if that is to be the result."""
        if self._config.result != "best":
            return
        if self._held_out_loss_now is None:
            self.validate()
        last, loss = self.done, self._held_out_loss_now
        if loss is None:
            return  # there is nothing held out to compare by
        self.take_aside()
        torch.distributed.barrier()
        found = [
            c
            for c in complete_checkpoints(self._checkpoints.folder)
            if c.progress.step < last and c.progress.config_hash == self._job.config_hash
        ]
        step = -1
        if self._rank == 0:
            for each in better(found, loss):
                try:
                    check_files(each.path, each.files)
                except ArtifactError as error:
                    give_notice(self._job.work, f"{each.path.name} is passed over: {error.message}")
                    continue
                step = each.progress.step
                break
        step = int(self.agree(float(step)))
        chosen = next((c for c in found if c.progress.step == step), None)
        if chosen is not None:
            self._load(chosen)
            self.done = last
        self._write(result=asdict(result_of(found, chosen, last, loss)))

    def write_model(self) -> None:
        """Write the model folder from the first rank; ZeRO-3 shards are gathered for it.

        Raises:
            TrainError: a weight is no finite number.
        """
        parameters = list(self._engine.module.parameters())
        if not all_finite(parameters):
            raise TrainError(
                "the model has weights that are no finite numbers, and is not written",
                code="train-diverged",
                hint="its checkpoint is of a raylm that did not look: start anew with --no-resume",
            )
        gather = self._config.zero == 3
        with deepspeed.zero.GatheredParameters(parameters, enabled=gather):
            if self._rank == 0:
                self._job.result.mkdir(parents=True, exist_ok=True)
                save_model(
                    self._hf_config,
                    merged_state(self._engine.module),
                    self._job.dataset / "tokenizer",
                    self._job.result,
                )
                if self._config.lora is not None and self._job.model.path is not None:
                    write_adapter(
                        self._engine.module,
                        self._config.lora,
                        Path(self._job.model.path).resolve().name,
                        self._job.result / ADAPTER,
                    )
        torch.distributed.barrier()

    def close(self) -> None:
        """Write the fullest worker's peak of memory; close the log and the process group."""
        self.take_aside()
        self._write(peak_memory_bytes=max_over_ranks(peak_memory_bytes()))
        if self._log is not None:
            self._log.close()
        self._engine.destroy()


def _gives_up(
    step: int, why: str, num_skips: int, documents: tuple[dict[str, Any], ...]
) -> TrainError:
    sources = list(dict.fromkeys(document["source"] for document in documents))
    named = f"; its samples are of {', '.join(sources[:5])}" if sources else ""
    more = f" and {len(sources) - 5} more" if len(sources) > 5 else ""
    plural = "" if num_skips == 1 else "s"
    before = f" after {num_skips} skipped window{plural} of samples" if num_skips else ""
    return TrainError(
        f"at step {step + 1} {why}{before}{named}{more}",
        code="train-diverged",
        hint="lower train.optimizer.lr, raise the warm-up, or train in fp32; the last checkpoint "
        "is kept, and skipped.json in the run's folder names what was left out",
    )
