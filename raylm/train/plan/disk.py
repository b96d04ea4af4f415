"""What a training writes to disk, in bytes; and what it would keep fewer of to fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.train.plan.batch import width_bytes
from raylm.train.plan.fit import gib
from raylm.train.plan.memory import num_orthogonal
from raylm.train.plan.subject import Subject


@dataclass(frozen=True, slots=True)
class Disk:
    """The most that lies on disk at one time."""

    checkpoint_bytes: int
    """One checkpoint, all workers' files."""
    num_checkpoints: int
    """The newest and the best that are kept, the one that is written before the oldest is removed,
    and one each that is removed but held by its upload (raylm/train/mirror.py) and by a validation
    (raylm/train/aside.py); no more than the run's steps make."""
    model_bytes: int
    dataset_bytes: int | None
    """None: the data stage has not run yet."""

    @property
    def written_bytes(self) -> int:
        """What the training writes: checkpoints and the model."""
        return self.num_checkpoints * self.checkpoint_bytes + self.model_bytes

    @property
    def total_bytes(self) -> int:
        """All of it; without the dataset where that is not known."""
        return self.written_bytes + (self.dataset_bytes or 0)


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
    held = int(has_bucket and checkpoint.upload) + int(config.validate_aside is not None)
    most = checkpoint.keep + checkpoint.keep_best + 1 + held
    if config.steps is not None and checkpoint.every_steps is not None:
        # One more where the run is told to stop.
        most = min(most, config.steps // checkpoint.every_steps + 1)
    return Disk(
        checkpoint_bytes=checkpoint_bytes(subject, config),
        num_checkpoints=most,
        model_bytes=subject.num_parameters * width_bytes(config),
        dataset_bytes=dataset_bytes,
    )


def nearest_on_disk(
    subject: Subject, config: TrainConfig, free_bytes: int, *, has_bucket: bool = False
) -> dict[str, str] | None:
    """Keys under `train.` to change so that what is written fits; None if nothing does.

    Args:
        free_bytes: of the disk, with what is there of the run already.
    """
    for changes in _fewer(config, has_bucket=has_bucket):
        checkpoint = config.checkpoint.model_copy(update=changes)
        found = config.model_copy(update={"checkpoint": checkpoint})
        if disk(subject, found, None, has_bucket=has_bucket).written_bytes <= free_bytes:
            return {f"train.checkpoint.{key}": str(value).lower() for key, value in changes.items()}
    return None


def _fewer(config: TrainConfig, *, has_bucket: bool) -> Iterator[dict[str, int | bool]]:
    """Ways to keep fewer checkpoints, those that give up least first."""
    now = config.checkpoint
    least_best = min(now.keep_best, 1 if config.result == "best" else 0)
    changes: dict[str, int | bool] = {}
    yield dict(changes)
    for keep in range(now.keep - 1, 0, -1):
        changes["keep"] = keep
        yield dict(changes)
    for keep_best in range(now.keep_best - 1, least_best - 1, -1):
        changes["keep_best"] = keep_best
        yield dict(changes)
    if has_bucket and now.upload:
        yield changes | {"upload": False}


def check_disk(
    subject: Subject,
    config: TrainConfig,
    store: Path,
    *,
    free_bytes: int,
    there_bytes: int,
    has_bucket: bool = False,
) -> None:
    """See that the disk holds what a training writes.

    Args:
        store: the folder that is written to.
        free_bytes: of its disk.
        there_bytes: of checkpoints of this run that are there already.

    Raises:
        HostError: it does not, and `config.check_disk` is on.
    """
    wanted = disk(subject, config, None, has_bucket=has_bucket)
    has = free_bytes + there_bytes
    if wanted.written_bytes <= has or not config.check_disk:
        return
    found = nearest_on_disk(subject, config, has, has_bucket=has_bucket)
    rest = "train.check_disk=false goes on all the same"
    hint = "free some, or set `store` to a folder on a larger disk"
    if found:
        hint = " ".join(f"--set {key}={value}" for key, value in found.items()) + " fits"
    raise HostError(
        f"the training does not fit the disk of {store}: {wanted.num_checkpoints} checkpoints of "
        f"{gib(wanted.checkpoint_bytes)} and the model's {gib(wanted.model_bytes)} need "
        f"{gib(wanted.written_bytes)}, and there is {gib(has)}",
        code="plan-disk-too-small",
        hint=f"{hint}; {rest}",
    )


def checkpoints_size(folder: Path) -> int:
    """Bytes of all files of a run's checkpoints; 0 where there are none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
