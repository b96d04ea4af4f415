"""Validation beside the training: checkpoints are looked at by a Ray task, one at a time.

    <work>/aside/step-00000100/      the checkpoint, linked so that pruning it does no harm
    <work>/aside/00000100.json       what the task found, until the first rank takes it

The driver starts a task when a checkpoint is there and the one before has been looked at, so that
a slow look skips checkpoints and never queues them. The first rank writes the result into
metrics.jsonl, as of the step that it belongs to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.progress import Report, Tick
from raylm.remote import translate
from raylm.stage import CHECKPOINTS
from raylm.train.checkpoint import Checkpoint, newest_complete
from raylm.train.held_out import HeldOut
from raylm.train.loop import Job
from raylm.train.placement import Resources, answering_nodes, room

ASIDE = "aside"


class Aside:
    """The driver's side; `look` is called now and then, and never waits."""

    def __init__(self, job: Job, report: Report) -> None:
        self._job, self._report = job, report
        self._task: Any = None
        self._folder = job.work / ASIDE
        # What was found for an attempt that is over may be of steps that are done again.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        newest = newest_complete(self._job.work / CHECKPOINTS)
        self._step = newest.progress.step if newest else -1

    def look(self) -> None:
        """Take note of a task that has ended, and start one if there is something new."""
        try:
            self._look()
        except Exception as error:
            # Whoever looks has other things to watch over.
            self._task = None
            self._report(Tick("train", f"step {self._step} is not validated: {error}"))

    def _look(self) -> None:
        if self._task is not None and not self._has_ended():
            return
        newest = newest_complete(self._job.work / CHECKPOINTS)
        if newest is not None and newest.progress.step > self._step:
            self._step = newest.progress.step
            # It may be pruned just now: the next one will do.
            with suppress(OSError):
                self._start(_linked(newest, self._folder))

    def close(self) -> None:
        """Cancel what is being looked at: its training is over."""
        import ray

        if self._task is not None:
            ray.cancel(self._task, force=True)
        for path in self._folder.glob("step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _start(self, pinned: Checkpoint) -> None:
        import ray

        asked = self._job.config.validate_aside
        assert asked is not None
        task = ray.remote(
            num_cpus=asked.num_cpus, num_gpus=asked.num_gpus, max_retries=0, max_calls=1
        )(_look_at)
        threads = max(1, int(asked.num_cpus))
        self._task = task.remote(self._job, pinned, self._folder, threads)

    def _has_ended(self) -> bool:
        import ray

        ended, _ = ray.wait([self._task], timeout=0)
        if not ended:
            return False
        try:
            ray.get(self._task)
        except Exception as error:
            why = translate(error, f"step {self._step} is not validated", code="task-failed")
            self._report(Tick("train", why.message))
        self._task = None
        for path in self._folder.glob("step-*"):
            shutil.rmtree(path, ignore_errors=True)
        return True


def looked_at(work: Path) -> set[int]:
    """Steps whose checkpoints are being looked at."""
    folders = (work / ASIDE).glob("step-*")
    return {int(folder.name.removeprefix("step-")) for folder in folders}


def take_results(work: Path) -> Iterator[HeldOut]:
    """What was found since the last time, each once; a look at a folder where there is nothing."""
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(work / ASIDE)):
            if name.endswith(".json"):
                file = work / ASIDE / name
                found = HeldOut(**json.loads(file.read_text(encoding="utf-8")))
                file.unlink()
                yield found


def nodes_for_workers(config: TrainConfig) -> list[Resources]:
    """What the cluster has at this moment for workers.

    Raises:
        HostError: see `without_share`.
    """
    return without_share(answering_nodes(), config)


def without_share(nodes: Sequence[Resources], config: TrainConfig) -> list[Resources]:
    """What is left of some nodes for workers when validation has its share, of the largest node.

    Raises:
        HostError: the least number of workers fits without the share, and not with it: a task
            that cannot be placed would wait for ever.
    """
    asked = config.validate_aside
    if asked is None:
        return list(nodes)
    left = [dict(node) for node in nodes]
    for name, amount in (("CPU", asked.num_cpus), ("GPU", asked.num_gpus)):
        if amount:
            largest = max(left, key=lambda node: node.get(name, 0.0), default={})
            largest[name] = largest.get(name, 0.0) - amount
    is_short = any(node.get(name, 0.0) < 0 for node in left for name in ("CPU", "GPU"))
    if is_short or room(left, config) < config.min_workers <= room(nodes, config):
        raise HostError(
            f"validation aside asks for {asked.num_cpus:g} CPUs and {asked.num_gpus:g} GPUs beside "
            f"{config.min_workers} workers, and the cluster does not hold both",
            code="cluster-too-small",
            hint="lower train.workers, set train.validate_aside.num_cpus to 0 to share the "
            "workers' cores, or leave train.validate_aside out",
        )
    return list(left)


def _look_at(job: Job, pinned: Checkpoint, folder: Path, threads: int) -> None:
    import torch

    from raylm.train.held_out import validate_checkpoint

    # The training goes first where both want a core.
    os.nice(10)
    torch.set_num_threads(threads)
    found = validate_checkpoint(job, pinned)
    write_atomic(folder / f"{found.step:08d}.json", json.dumps(asdict(found)) + "\n")


def _linked(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint under another name, its files linked."""
    target = folder / checkpoint.path.name
    shutil.copytree(checkpoint.path, target, copy_function=os.link)
    return replace(checkpoint, path=target)
