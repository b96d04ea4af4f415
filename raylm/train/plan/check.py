"""What the train stage asks before it starts workers: does it fit, and what is predicted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.train.peak import known_peak
from raylm.train.plan.disk import check_disk, checkpoint_bytes, checkpoints_size
from raylm.train.plan.fit import check_fits
from raylm.train.plan.pace import pace
from raylm.train.plan.room import Room, cluster_room, this_node
from raylm.train.plan.subject import subject_of


def check_training(
    model: ModelConfig,
    config: TrainConfig,
    split: PackedSplit,
    root: Path,
    *,
    checkpoints: Path | None = None,
    has_bucket: bool = False,
) -> dict[str, Any] | None:
    """The predicted cost of a training, for its record; None for a model of unknown cost.

    Args:
        root: the store's folder, where the peak of this machine is remembered.
        checkpoints: the run's folder of them, which a resumed run has filled before.
        has_bucket: the store is one.

    Raises:
        HostError: a worker needs more memory than it has, and `train.check_memory` is on, or
            the disk does not hold what is written, and `train.check_disk` is on.
    """
    subject = subject_of(
        model, seq_len=split.seq_len, vocab_size=split.vocab_size,
        source_len=split.source_len, num_labels=split.num_labels,
    )  # fmt: skip
    if subject is None:
        return None
    room = connected_room()
    host = room.host_bytes if config.gpus_per_worker else None
    memory = check_fits(subject, config, room.worker_bytes, host)
    check_disk(
        subject,
        config,
        root,
        free_bytes=shutil.disk_usage(root).free,
        there_bytes=checkpoints_size(checkpoints) if checkpoints else 0,
        has_bucket=has_bucket,
    )
    expected = pace(
        subject,
        config,
        worker_peak=known_peak(config, root),
        num_samples=split.num_samples,
    )
    return {
        "memory_bytes": memory.total_bytes,
        "memory": memory.parts(),
        "tokens_per_s": expected.tokens_per_s,
        "train_s": expected.train_s,
        "steps": expected.steps,
        "checkpoint_bytes": checkpoint_bytes(subject, config),
    }


def connected_room() -> Room:
    """The room of the cluster that this process is connected to, or of this machine."""
    import ray

    if ray.is_initialized():
        return cluster_room(ray.nodes())
    return Room((this_node(len(os.sched_getaffinity(0))),))
