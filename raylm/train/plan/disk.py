"""What a training writes to disk, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.train.plan.memory import Decoder, width_bytes


@dataclass(frozen=True, slots=True)
class Disk:
    """The most that lies on disk at one time."""

    checkpoint_bytes: int
    """One checkpoint, all workers' files."""
    num_checkpoints: int
    """Those that are kept, and the one being written before the oldest is removed."""
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


def checkpoint_bytes(decoder: Decoder, config: TrainConfig) -> int:
    """One checkpoint as DeepSpeed writes it, over all workers.

    Weights in the training's precision, but not with ZeRO-3, whose master weights are enough;
    two moments, and the master weight but in fp32 without ZeRO, each in fp32.
    """
    has_master = config.zero > 0 or config.precision == "bf16"
    weights = 0 if config.zero == 3 else width_bytes(config)
    return decoder.num_parameters * (weights + (12 if has_master else 8))


def disk(decoder: Decoder, config: TrainConfig, dataset_bytes: int | None) -> Disk:
    """The disk that a run takes beside its logs."""
    return Disk(
        checkpoint_bytes=checkpoint_bytes(decoder, config),
        num_checkpoints=config.checkpoint.keep + 1,
        model_bytes=decoder.num_parameters * width_bytes(config),
        dataset_bytes=dataset_bytes,
    )
