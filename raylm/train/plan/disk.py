"""What a training writes to disk, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.train.plan.batch import width_bytes
from raylm.train.plan.memory import num_orthogonal
from raylm.train.plan.subject import Subject


@dataclass(frozen=True, slots=True)
class Disk:
    """The most that lies on disk at one time."""

    checkpoint_bytes: int
    """One checkpoint, all workers' files."""
    num_checkpoints: int
    """The newest and the best that are kept, the one that is written before the oldest is removed,
    and one that is removed but held by its upload (raylm/train/mirror.py)."""
    model_bytes: int
    dataset_bytes: int | None
    """None: the data stage has not run yet."""

    @property
    def total_bytes(self) -> int:
        """All of it; without the dataset where that is not known."""
        return (
            self.num_checkpoints * self.checkpoint_bytes
            + self.model_bytes
            + (self.dataset_bytes or 0)
        )


def checkpoint_bytes(subject: Subject, config: TrainConfig) -> int:
    """One checkpoint as DeepSpeed writes it, over all workers.

    Weights in the training's precision, but not with ZeRO-3, whose master weights are enough;
    two moments (one where Muon goes), and the master weight but in fp32 without ZeRO, each in fp32.
    """
    has_master = config.zero > 0 or width_bytes(config) == 2
    weights = 0 if config.zero == 3 else width_bytes(config)
    return subject.num_parameters * (weights + (12 if has_master else 8)) - 4 * num_orthogonal(
        subject, config
    )


def disk(
    subject: Subject, config: TrainConfig, dataset_bytes: int | None, *, has_bucket: bool = False
) -> Disk:
    """The disk that a run takes beside its logs.

    Args:
        has_bucket: the store is one, to which checkpoints are uploaded if the config says so.
    """
    checkpoint = config.checkpoint
    held = 1 if has_bucket and checkpoint.upload else 0
    return Disk(
        checkpoint_bytes=checkpoint_bytes(subject, config),
        num_checkpoints=checkpoint.keep + checkpoint.keep_best + 1 + held,
        model_bytes=subject.num_parameters * width_bytes(config),
        dataset_bytes=dataset_bytes,
    )
