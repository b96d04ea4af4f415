"""Training in this process: no Ray Train, no workers, breakpoints work.

The rank is the same `Worker` under the same loop as everywhere, in a process group of one, so
that losses, checkpoints, guard and resume are those of a run with one worker. What Ray's side
does for lost and hung workers falls away: a process cannot replace itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from dataclasses import replace
from types import FrameType
from typing import Any

from raylm.config.train import TrainConfig
from raylm.environ import changed_environment
from raylm.errors import RaylmError
from raylm.progress import Report
from raylm.remote import translate
from raylm.train.loop import Job, backend, run_rank
from raylm.train.orders import Order, give_order
from raylm.train.signs import begin_attempt
from raylm.train.watch import Watch, ask_to_save

_ENVIRONMENT = {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip


def fit_alone(job: Job, report: Report) -> bool:
    """Train in this process until the model is written; False if it was told to stop before.

    The first signal asks for a last checkpoint and takes effect when that is written, or the
    grace is over; a second one takes effect at once.

    Raises:
        RaylmError: the training failed.
    """
    give_order(job.work, Order.GO_ON)
    job = replace(job, attempt=begin_attempt(job.work))
    # One rank has nobody who could end it, and nobody to wait for.
    seen = replace(job, config=job.config.model_copy(update={"hang_s": 0.0}))
    environment = changed_environment(_environment(job.config))
    with Watch(seen, 1, report), environment, _Signals(job, report) as signals:
        try:
            # DeepSpeed logs to stdout, which is the command's result.
            with contextlib.redirect_stdout(sys.stderr):
                _join_group_of_one(job.config)
                run_rank(job, rank=0, world_size=1, local_workers=1)
        except RaylmError:
            raise
        except Exception as error:
            raise translate(
                error,
                "the training failed",
                code="train-worker-failed",
                hint=f"{job.work} keeps the checkpoints, and `raylm run` goes on from the newest; "
                "--debug shows where it failed",
            ) from error
        signals.take_effect()
    return (job.result / "config.json").exists()


def _join_group_of_one(config: TrainConfig) -> None:
    """The default process group, of this process alone: its store needs no address.

    It stays: DeepSpeed keeps clones of the first one it sees, and a second training in this
    process uses it again.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(backend(config), store=dist.HashStore(), rank=0, world_size=1)
    assert dist.get_world_size() == 1, "this process is a rank of something else"


def _environment(config: TrainConfig) -> dict[str, str]:
    """What a rank reads from the environment."""
    changes = _ENVIRONMENT | {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    return changes if config.gpus_per_worker else changes | {"DS_ACCELERATOR": "cpu"}


class _Signals:
    """Within, SIGINT and SIGTERM first ask for a checkpoint; outside the main thread, nothing."""

    def __init__(self, job: Job, report: Report) -> None:
        self._job, self._report = job, report
        self._before: dict[signal.Signals, Any] = {}
        self._taken: signal.Signals | None = None
        self._grace: threading.Timer | None = None

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        if self._grace is not None:
            self._grace.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_effect(self) -> None:
        """Pass on the signal that the training has stopped for, if there was one."""
        if self._taken is not None:
            self.__exit__()
            signal.raise_signal(self._taken)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._taken is not None or not ask_to_save(self._job, self._report):
            self.__exit__()
            signal.raise_signal(number)
            return
        self._taken = signal.Signals(number)
        grace_s = self._job.config.checkpoint.grace_s
        self._grace = threading.Timer(grace_s, os.kill, (os.getpid(), number))
        self._grace.daemon = True
        self._grace.start()
