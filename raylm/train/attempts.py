"""Attempts: a run starts workers, loses them, and starts others, until it is done.

A worker that dies takes its attempt with it: collectives need all of them. The next attempt
starts from the newest checkpoint with as many workers as the cluster then holds. What a worker
raises on purpose (a `RaylmError`) ends the run at once: another attempt would meet it again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raylm.config.train import TrainConfig
from raylm.errors import HostError, RaylmError
from raylm.progress import Report, Tick
from raylm.remote import translate
from raylm.train.aside import nodes_for_workers
from raylm.train.loop import Job, train_loop
from raylm.train.orders import Order, give_order
from raylm.train.placement import Resources, choose_workers, free_places, held_places
from raylm.train.signs import begin_attempt
from raylm.train.watch import Watch

LOST = "train-worker-lost"
"""Code of a failure that another attempt may get over."""
_LOOK_S = 2.0
_SIGNS_OF_LOSS = (
    "ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "NodeDiedError",
    "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "worker process has died",
    "WorkerGroupStartupTimeoutError", "OutOfMemoryError",
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read timeout",
    "Socket Timeout", "NCCL error", "unhandled system error",
)  # fmt: skip


@dataclass(slots=True)
class Patience:
    """How often lost workers are replaced: counted anew whenever a step was gained; pure."""

    limit: int
    left: int
    step: int = -1
    """The furthest step that any attempt has reached."""

    @classmethod
    def of(cls, limit: int) -> Patience:
        """So many attempts that gain nothing, beside the first."""
        return cls(limit, limit)

    def allows(self, step: int) -> bool:
        """Whether to try again after an attempt that got to `step`."""
        if step > self.step:
            self.step, self.left = step, self.limit
        self.left -= 1
        return self.left >= 0


def fit(job: Job, report: Report) -> bool:
    """Train until the model is written; False if the run was told to stop before.

    Raises:
        HostError: the cluster cannot hold the workers.
        RaylmError: a worker failed for good; the message has the cause, the hint the place of
            its log.
    """
    patience = Patience.of(job.config.max_failures)
    wait_s = 0.0
    while True:
        num_workers = await_workers(nodes_for_workers, job.config, wait_s, report)
        give_order(job.work, Order.GO_ON)
        job = replace(job, attempt=begin_attempt(job.work))
        watch = Watch(job, num_workers, report)
        try:
            with watch:
                _attempt(job, num_workers, watch.wait)
        except RaylmError as error:
            cause = watch.cause or error.message
            if error.code != LOST:
                raise
            if not patience.allows(watch.step):
                raise RaylmError(
                    f"{cause}; {job.config.max_failures + 1} attempts in a row gained no step",
                    code=LOST,
                    hint=error.hint,
                ) from error
            report(_notice(f"{cause}; starting anew from the last checkpoint"))
        else:
            if (job.result / "config.json").exists():
                return True
            if watch.restart is None:
                return False
            report(_notice(f"{watch.restart}; starting anew from the checkpoint of now"))
        job = replace(job, resume=True)
        wait_s = job.config.replace_s


def await_workers(
    nodes: Callable[[TrainConfig], Sequence[Resources]],
    config: TrainConfig,
    limit_s: float,
    report: Report,
) -> int:
    """How many workers to start, once there is room for the least of them.

    Raises:
        HostError: there was not in `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return choose_workers(nodes(config), config)
        except HostError as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            report(Tick("train", f"{error.message}; waiting for nodes, {left_s:.0f} s more"))
            time.sleep(min(_LOOK_S, left_s))


def _notice(text: str) -> Tick:
    return Tick("train", text, is_notice=True)


def _attempt(job: Job, num_workers: int, wait: Callable[[Callable[[], object]], None]) -> None:
    from ray.train import RunConfig, ScalingConfig

    from raylm.train.trainer import Trainer

    config = job.config
    resources = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    ray_folder = job.work / "ray"
    shutil.rmtree(ray_folder, ignore_errors=True)
    trainer = Trainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(name="train", storage_path=str(ray_folder)),
    )
    hint = (
        f"`raylm logs` shows the workers' logs; {job.work} keeps the checkpoints, and "
        "`raylm run` goes on from the newest"
    )
    held = held_places()
    try:
        wait(trainer.fit)
    except Exception as error:
        free_places(held)
        code = LOST if is_loss(error) else "train-worker-failed"
        raise translate(error, "a training worker failed", code=code, hint=hint) from error
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def is_loss(error: BaseException) -> bool:
    """Whether workers were lost, rather than that their code failed."""
    causes: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        current = queue.pop()
        if isinstance(current, BaseException) and current not in causes:
            causes.append(current)
            queue += [current.__cause__, getattr(current, "cause", None)]
            queue += list((getattr(current, "worker_failures", None) or {}).values())
    if any(isinstance(cause, RaylmError) for cause in causes):
        return False
    texts = [f"{type(cause).__name__}: {cause}" for cause in causes]
    return any(sign in text for text in texts for sign in _SIGNS_OF_LOSS)
