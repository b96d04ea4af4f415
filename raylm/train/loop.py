"""The training loop of one worker: the same on every rank, and after every restart.

What a step does is a function of the step's number alone: samples come from the pure order,
the rate from the pure schedule, the loss is divided by the target tokens of the whole global
batch, which each rank counts for itself. So nothing but weights, optimizer state and the
generators has to be saved, and a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.train.flops import Flops
from raylm.train.orders import Order
from raylm.train.shared import check_shared
from raylm.train.signs import RANKS, Beat, Doing, beating

if TYPE_CHECKING:
    from raylm.train.worker import Worker


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker is told."""

    model: ModelConfig
    config: TrainConfig
    dataset: Path
    work: Path
    seed: int
    config_hash: str
    resume: bool
    """Go on from the newest sound checkpoint in `work`."""
    result: Path
    """Where the first worker writes the model folder."""
    objective: ObjectiveName = "causal"
    attempt: str = ""
    """Of the workers that get it: `begin_attempt`."""
    flops: Flops | None = None
    """Of a token; None where no formula is right, and MFU unknown."""


def backend(config: TrainConfig) -> str:
    """torch.distributed's: figures that ranks agree on are on CPUs also where weights are not."""
    return "cpu:gloo,cuda:nccl" if config.gpus_per_worker else "gloo"


def train_loop(settings: dict[str, Any]) -> None:
    """Run one worker to the end; called by Ray Train with `{"job": Job}`."""
    job: Job = settings["job"]
    import ray.train

    from raylm.train.group import joined

    context = ray.train.get_context()
    with joined(backend(job.config)):
        run_rank(
            job,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            local_workers=context.get_local_world_size(),
        )


def run_rank(job: Job, *, rank: int, world_size: int, local_workers: int) -> None:
    """Run one rank to the end, in a process group that is there already.

    Args:
        local_workers: ranks on this node, which share its cores.
    """
    _bind_threads(job.config, local_workers)
    # Before the first sign: a rank whose folder is gone takes itself for given up.
    check_shared(job.work / RANKS / job.attempt, world_size=world_size)
    with beating(job.work, job.attempt, rank) as beat:
        with uncollected():
            from raylm.train.worker import Worker

        worker = Worker(job, rank=rank, world_size=world_size, doing=beat.doing)
        worker.restore()
        worker.check_packing()
        worker.find_peak()
        if _train(worker, job.config, beat):
            with beat.doing(Doing.VALIDATE):
                worker.take_best()
            with beat.doing(Doing.WRITE_MODEL):
                worker.write_model()
        worker.close()


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, Python does not look for garbage.

    DeepSpeed and transformers make half a million objects that stay; to look through them again and
    again while they load takes a tenth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _train(worker: Worker, config: TrainConfig, beat: Beat) -> bool:
    """Step until the horizon; False if the driver asked to stop before it."""
    saved_s = time.monotonic()
    while not worker.finished():
        beat.step(worker.done)
        started = time.perf_counter()
        figures = worker.step()
        worker.clock(time.perf_counter() - started, figures)
        if not worker.judge(figures):
            continue
        if worker.done % config.log_every == 0 or worker.finished():
            worker.log(figures)
        worker.take_aside()
        every = config.validate_every
        if worker.finished() or (every and worker.done % every == 0):
            with beat.doing(Doing.VALIDATE):
                worker.validate()
                is_good = worker.judge_weights()
            if not is_good:
                continue
        stop = worker.wants() is Order.SAVE_AND_STOP and not worker.finished()
        if stop or _due(config, worker.done, worker.agree(time.monotonic() - saved_s)):
            with beat.doing(Doing.SAVE):
                is_good = worker.save()
            if not is_good:
                continue
            saved_s = time.monotonic()
        if stop:
            return False
    return True


def _due(config: TrainConfig, step: int, since_s: float) -> bool:
    if config.checkpoint.every_steps is not None:
        return step % config.checkpoint.every_steps == 0
    return since_s >= config.checkpoint.every_s


def _bind_threads(config: TrainConfig, local_workers: int) -> None:
    """One worker takes its share of the cores; two that each take all are slower than one."""
    import torch

    threads = config.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // local_workers)
    torch.set_num_threads(threads)
