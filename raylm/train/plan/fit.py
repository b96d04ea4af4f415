"""Whether a training fits the memory of its workers, and if not, what is nearest that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.train.plan.memory import (
    Memory,
    host_bytes,
    host_peak,
    peak_memory,
    start_bytes,
)
from raylm.train.plan.subject import Subject

RoomOf = Callable[[TrainConfig], int]
"""Bytes that one worker of a setting has; 0 where its workers cannot be placed."""


def micro_batches(config: TrainConfig, workers: int) -> list[int]:
    """Micro-batches that make up the global batch on so many workers, the largest first."""
    if config.global_batch % max(1, workers):
        return []
    share = config.global_batch // max(1, workers)
    return [size for size in range(share, 0, -1) if share % size == 0]


def candidates(config: TrainConfig) -> Iterator[TrainConfig]:
    """Settings that train the same with less memory, those that cost least first.

    A lower micro-batch costs almost nothing; then activation checkpointing, a third more
    arithmetic; then a higher ZeRO stage, more communication; then more workers. Where there is no
    GPU to take from, offloading only costs memory, and is left out from the second on.
    """
    if config.offload != "none" and not config.gpus_per_worker:
        yield config
        config = config.model_copy(update={"offload": "none"})
    worker_counts = [
        count
        for count in range(config.max_workers, config.global_batch + 1)
        if count == config.max_workers or micro_batches(config, count)
    ]
    if config.is_alone:
        worker_counts = [0]
    for workers in worker_counts:
        for zero in range(config.zero, 4):
            for checkpointed in sorted({config.activation_checkpointing, True}):
                for size in micro_batches(config, workers):
                    if size <= config.micro_batch:
                        yield config.model_copy(
                            update={
                                "workers": workers,
                                "zero": zero,
                                "activation_checkpointing": checkpointed,
                                "micro_batch": size,
                            }
                        )


def nearest_fitting(subject: Subject, config: TrainConfig, room: RoomOf) -> TrainConfig | None:
    """The first candidate that fits; None if none does."""
    return next((each for each in candidates(config) if fits(subject, each, room)), None)


def largest_micro_batch(subject: Subject, config: TrainConfig, room: RoomOf) -> int | None:
    """The largest micro-batch, of those that make up the global batch, that fits."""
    for size in micro_batches(config, config.max_workers):
        if fits(subject, config.model_copy(update={"micro_batch": size}), room):
            return size
    return None


def fits(subject: Subject, config: TrainConfig, room: RoomOf) -> bool:
    """Whether every worker's peak fits what it has."""
    return peak_memory(subject, config).total_bytes <= room(config)


def fits_host(subject: Subject, config: TrainConfig, host: RoomOf) -> bool:
    """Whether what workers on GPUs need of their host's memory is there."""
    return host_peak(subject, config) <= host(config)


def nearest_on_host(
    subject: Subject, config: TrainConfig, room: RoomOf, host: RoomOf
) -> TrainConfig | None:
    """The first setting that fits the host's memory too: with less offloaded rather than with more
    workers; None if none does."""
    less = {"all": ("optimizer", "none"), "optimizer": ("none",)}.get(config.offload, ())
    found = [
        each
        for offload in (config.offload, *less)
        for each in candidates(config.model_copy(update={"offload": offload}))
        if fits(subject, each, room) and fits_host(subject, each, host)
    ]
    return min(found, key=lambda each: each.max_workers, default=None)


def check_fits(
    subject: Subject, config: TrainConfig, room: RoomOf, host: RoomOf | None = None
) -> Memory:
    """The memory of a worker, or an error that says what would fit.

    Args:
        host: bytes of its host's memory that a worker on a GPU has; None is not looked at.

    Raises:
        HostError: a worker needs more than it has, and `config.check_memory` is on.
    """
    memory = peak_memory(subject, config)
    has = room(config)
    # Workers that cannot be placed at all are refused elsewhere, with another remedy.
    if has == 0 or not config.check_memory:
        return memory
    if memory.total_bytes > has:
        raise does_not_fit(subject, config, memory, room)
    if host is not None and not fits_host(subject, config, host):
        raise does_not_fit_host(subject, config, room, host)
    return memory


def does_not_fit(subject: Subject, config: TrainConfig, memory: Memory, room: RoomOf) -> HostError:
    """The error for a training whose workers need more memory than they have."""
    largest = sorted(memory.parts().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
    return HostError(
        f"the training does not fit: a worker needs {gib(memory.total_bytes)} ({parts}), and "
        f"has {gib(room(config))}",
        code="plan-does-not-fit",
        hint=_hint(subject, config, nearest_fitting(subject, config, room)),
    )


def does_not_fit_host(
    subject: Subject, config: TrainConfig, room: RoomOf, host: RoomOf
) -> HostError:
    """The error for workers on GPUs that need more of their host's memory than there is."""
    what = "what is offloaded"
    if start_bytes(subject) >= host_bytes(subject, config):
        what = "the whole model in fp32, which each worker builds there at its start"
    return HostError(
        f"the training does not fit: beside its GPU a worker needs "
        f"{gib(host_peak(subject, config))} of its host's memory ({what}), and has "
        f"{gib(host(config))}",
        code="plan-does-not-fit",
        hint=_hint(subject, config, nearest_on_host(subject, config, room, host)),
    )


def changed(config: TrainConfig, found: TrainConfig) -> dict[str, str]:
    """The keys under `train.` in which two settings differ, and the values of the second."""
    names = ("micro_batch", "activation_checkpointing", "zero", "offload", "workers")
    return {
        f"train.{name}": str(getattr(found, name)).lower()
        for name in names
        if getattr(found, name) != getattr(config, name)
    }


def _hint(subject: Subject, config: TrainConfig, found: TrainConfig | None) -> str:
    rest = "train.check_memory=false goes on all the same"
    if found is None:
        return f"no setting of this model fits here: take a smaller one or a larger machine; {rest}"
    sets = " ".join(f"--set {key}={value}" for key, value in changed(config, found).items())
    return f"{sets} needs {gib(peak_memory(subject, found).total_bytes)} and fits; {rest}"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.2f} GiB"
