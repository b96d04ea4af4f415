"""`raylm plan`: what a training will cost, known before it runs, and checked by three steps.

The figures are formulas (`raylm.train.plan`) over the configuration, the dataset if there is
one, and this machine. A probe runs three steps of the real train stage and keeps nothing.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from raylm.artifact import Artifact
from raylm.config.load import Loaded
from raylm.config.run import RunConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.errors import HostError, MissingExtra, RaylmError
from raylm.pipeline import connector, find_result, run_name
from raylm.progress import Report, silent
from raylm.stage import CHECKPOINTS, Context
from raylm.stages import STAGES
from raylm.store import Store
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.objectives.objective import choose
from raylm.train.peak import measure_peak, mfu
from raylm.train.plan.disk import Disk, check_disk, checkpoints_size, disk, nearest_on_disk
from raylm.train.plan.fit import (
    changed,
    does_not_fit,
    does_not_fit_host,
    fits,
    fits_host,
    largest_micro_batch,
    nearest_fitting,
    nearest_on_host,
)
from raylm.train.plan.memory import Memory, host_bytes, host_peak, peak_memory
from raylm.train.plan.pace import Pace, pace
from raylm.train.plan.room import Room, Shortage, this_node
from raylm.train.plan.subject import Subject, subject_of
from raylm.train.precision import choose_precision

PROBE_STEPS = 3
_FEWEST_LABELS = 2
"""Classes that are reckoned with where no dataset says how many there are."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What three steps of the real stage measured."""

    tokens_per_s: float
    """Of the steps after the first, which pays for allocations."""
    peak_memory_bytes: int
    """Of the fullest worker."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will cost."""

    config: TrainConfig
    subject: Subject
    memory: Memory
    room: Room | None
    """The nodes; None where they are not known from here."""
    nearest: dict[str, str]
    """What to change so that it fits; empty if it does, or if nothing helps."""
    largest_micro_batch: int | None
    disk: Disk
    free_disk_bytes: int
    there_bytes: int
    """Of the run's checkpoints that lie there already: it goes on from them."""
    has_bucket: bool
    store: Path
    pace: Pace
    """As predicted, whether or not there was a probe."""
    probe: Probe | None
    host_bytes: int
    """What a worker keeps in its host's memory instead of its GPU's."""
    host_peak_bytes: int
    """The most that a worker on a GPU has in its host's memory; 0 of one without."""
    precision_why: str | None
    """Why `train.precision: auto` is what it is; None if it was given."""
    unknown: tuple[str, ...]
    """What could not be told, and why."""

    @property
    def shortage(self) -> Shortage | None:
        """Why the workers cannot be placed; None if they can, or if nothing is known."""
        return None if self.room is None else self.room.shortage(self.config)

    @property
    def room_bytes(self) -> int | None:
        """What one worker has; None is unknown."""
        return None if self.room is None else self.room.worker_bytes(self.config) or None

    @property
    def host_room_bytes(self) -> int | None:
        """What a worker on a GPU has of its host's memory; None is unknown."""
        if self.room is None or not self.config.gpus_per_worker:
            return None
        return self.room.host_bytes(self.config) or None

    @property
    def fits(self) -> bool | None:
        """Whether a worker's peak fits what it has, on its GPU and beside it; None is unknown."""
        if self.room is None or self.room_bytes is None:
            return None
        if not fits(self.subject, self.config, self.room.worker_bytes):
            return False
        return not self.config.gpus_per_worker or fits_host(
            self.subject, self.config, self.room.host_bytes
        )

    @property
    def fits_disk(self) -> bool:
        """Whether the disk holds what the training writes."""
        return self.disk.written_bytes <= self.free_disk_bytes + self.there_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        del found["config"], found["room"]
        found["store"] = str(self.store)
        found["model"] = found.pop("subject") | {
            "architecture": self.subject.architecture,
            "num_parameters": self.subject.num_parameters,
        }
        found["memory"] |= {"total_bytes": self.memory.total_bytes}
        found["disk"] |= {"total_bytes": self.disk.total_bytes}
        found["mfu"], found["expected_s"] = self.mfu, self.expected_s
        names = {
            "workers", "zero", "precision", "micro_batch", "global_batch",
            "activation_checkpointing", "offload",
        }  # fmt: skip
        found["room_bytes"], found["host_room_bytes"] = self.room_bytes, self.host_room_bytes
        shortage = self.shortage
        return {
            "fits": self.fits,
            "fits_disk": self.fits_disk,
            "not_placed": shortage.why if shortage else None,
            "train": self.config.model_dump(include=names),
        } | found

    @property
    def expected_s(self) -> float | None:
        """Seconds of training, from what was measured where it was; None is unknown."""
        if self.probe is None or self.config.time_s is not None or self.pace.tokens is None:
            return self.pace.train_s
        return self.pace.tokens / self.probe.tokens_per_s

    @property
    def mfu(self) -> float | None:
        """Of what was measured; None without a probe or a known peak."""
        if self.probe is None:
            return None
        return mfu(self.probe.tokens_per_s, self.pace.flops_per_token, self.pace.peak_flops)


def make_plan(
    loaded: Loaded, store: Store, *, probing: bool = False, report: Report = silent
) -> Plan:
    """Plan the training of a configuration.

    Args:
        probing: run three steps of the real stage; needs the dataset.

    Raises:
        ConfigError: the model's shape does not fit, or the model not what it is to learn from.
        HostError: a probe is asked, and its workers do not fit.
        RaylmError: a probe is asked, and there is no dataset, or its training failed.
    """
    config = loaded.config
    dataset, unknown = _dataset(loaded, store)
    split = PackedSplit.open(dataset.path, "train") if dataset else None
    subject = _subject(located(config, loaded.base_dir), split)
    train, chosen = config.train, None
    if train.precision == "auto":
        chosen = choose_precision(train, store.root)
        train = train.model_copy(update={"precision": chosen.precision})
    room = None
    if config.cluster.address is None:
        room = Room((this_node(_num_cpus(config)),))
    else:
        unknown += (f"memory of the workers: the cluster at {config.cluster.address} knows it",)
    probe = _probe(loaded, train, store, dataset, report) if probing else None
    worker_peak = None if room is None else _peak(train, store)
    planned = pace(
        subject,
        train,
        worker_peak=worker_peak,
        num_samples=split.num_samples if split else None,
    )
    if worker_peak is None:
        unknown += ("time: the peak of the workers' device is not known",)
    shortage = room.shortage(train) if room else None
    if shortage is not None:
        unknown += (f"whether a worker's memory is enough: {shortage.why}",)
    has_bucket = store.bucket is not None
    free, there = psutil.disk_usage(str(store.root)).free, _there(config, store)
    if planned.steps is None:
        unknown += ("steps and tokens: train.time_s says how long, not how many",)
    return Plan(
        config=train,
        subject=subject,
        memory=peak_memory(subject, train),
        room=room,
        nearest=_nearest(subject, train, room, free + there, has_bucket=has_bucket),
        largest_micro_batch=(
            None if room is None else largest_micro_batch(subject, train, room.worker_bytes)
        ),
        disk=disk(subject, train, _size(dataset), has_bucket=has_bucket),
        free_disk_bytes=free,
        there_bytes=there,
        has_bucket=has_bucket,
        store=store.root,
        pace=planned,
        probe=probe,
        host_bytes=host_bytes(subject, train) if train.gpus_per_worker else 0,
        host_peak_bytes=host_peak(subject, train) if train.gpus_per_worker else 0,
        precision_why=chosen.why if chosen else None,
        unknown=unknown,
    )


def _subject(config: RunConfig, split: PackedSplit | None) -> Subject:
    """What the configuration trains; of a dataset that is not there, what it is to be."""
    data = config.data
    num_labels = _FEWEST_LABELS if data.format == "labels" else None
    found = subject_of(
        config.model,
        seq_len=split.seq_len if split else data.seq_len,
        vocab_size=split.vocab_size if split else data.tokenizer.vocab_size,
        source_len=split.source_len if split else data.source_len,
        num_labels=split.num_labels if split else num_labels,
    )
    if found is None:
        raise HostError(
            f"{config.model.path} is of an architecture whose cost is not known",
            code="plan-unknown-model",
            hint="Llama, Mistral and Qwen decoders, T5 and BERT are known; `raylm train` runs it "
            "all the same",
        )
    choose(config.train, split.format if split else data.format, found.architecture)
    return found


def require_fit(plan: Plan) -> None:
    """Refuse a plan whose workers do not fit, or whose files do not.

    Raises:
        HostError: the workers cannot be placed here, one needs more memory than it has, or the
            disk does not hold what is written; the hint is the nearest that fits.
    """
    subject, config, shortage = plan.subject, plan.config, plan.shortage
    if shortage is not None and shortage.is_certain:
        raise HostError(
            f"the workers {shortage.why}",
            code="cluster-too-small",
            hint="lower train.workers or what each takes (train.cpus_per_worker, "
            "train.gpus_per_worker), or set cluster.address to a larger cluster",
        )
    if plan.fits is False and config.check_memory:
        assert plan.room is not None
        room = plan.room.worker_bytes
        if not fits(subject, config, room):
            raise does_not_fit(subject, config, plan.memory, room)
        raise does_not_fit_host(subject, config, room, plan.room.host_bytes)
    check_disk(
        subject,
        config,
        plan.store,
        free_bytes=plan.free_disk_bytes,
        there_bytes=plan.there_bytes,
        has_bucket=plan.has_bucket,
    )


def located(config: RunConfig, base_dir: Path) -> RunConfig:
    """The config with a model folder's path made absolute."""
    if config.model.path is None:
        return config
    path = str(base_dir / config.model.path)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})


def _dataset(loaded: Loaded, store: Store) -> tuple[Artifact | None, tuple[str, ...]]:
    try:
        found = find_result(loaded, store, "data")
    except RaylmError as error:
        return None, (f"the dataset: {error.message}",)
    if found is None:
        return None, ("the dataset: `raylm data` has not made it yet",)
    return found, ()


def _probe(
    loaded: Loaded, train: TrainConfig, store: Store, dataset: Artifact | None, report: Report
) -> Probe:
    if dataset is None:
        raise HostError(
            "a probe trains on the dataset, which is not there yet",
            code="plan-no-dataset",
            hint="`raylm data` makes it",
        )
    config = loaded.config
    checkpoint = train.checkpoint.model_copy(update={"every_steps": PROBE_STEPS + 1})
    steps = train.model_copy(
        update={
            "steps": PROBE_STEPS, "time_s": None, "checkpoint": checkpoint, "log_every": 1,
            "validate_every": None, "validate_aside": None, "trackers": (),
        }
    )  # fmt: skip
    (stage,) = (stage for stage in STAGES if stage.name == "train")
    # Never committed, so that all of it is removed, at the latest when the store is opened.
    with store.draft("report", "probe") as scratch, connector(loaded, store, report)():
        context = Context(
            Store(scratch.path / "store"), "probe", config.seed, loaded.base_dir,
            scratch.path / "work", report=report, resume=False,
        )  # fmt: skip
        stage.work(config.model_copy(update={"train": steps}), {"data": dataset}, context)
        lines = list(read_metrics(context.work / METRICS))
    times = [line["elapsed_s"] for line in lines if "loss" in line]
    tokens = [line["tokens"] for line in lines if "loss" in line]
    (peak,) = (line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line)
    return Probe((tokens[-1] - tokens[0]) / (times[-1] - times[0]), peak)


def _peak(config: TrainConfig, store: Store) -> float | None:
    try:
        return measure_peak(config, store.root)
    except MissingExtra:
        return None


def _num_cpus(config: RunConfig) -> int:
    return config.cluster.num_cpus or len(os.sched_getaffinity(0))


def _nearest(
    subject: Subject, config: TrainConfig, room: Room | None, disk_bytes: int, *, has_bucket: bool
) -> dict[str, str]:
    found: TrainConfig | None = config
    if room is not None and room.shortage(config) is None:
        if config.gpus_per_worker:
            found = nearest_on_host(subject, config, room.worker_bytes, room.host_bytes)
        else:
            found = nearest_fitting(subject, config, room.worker_bytes)
    if found is None:
        return {}
    kept = nearest_on_disk(subject, found, disk_bytes, has_bucket=has_bucket)
    return {} if kept is None else changed(config, found) | kept


def _there(config: RunConfig, store: Store) -> int:
    """Bytes of checkpoints that a killed attempt has left."""
    run = store.root / "runs" / run_name(config)
    return sum(checkpoints_size(folder) for folder in run.glob(f"train-*/{CHECKPOINTS}"))


def _size(artifact: Artifact | None) -> int | None:
    return sum(file.size_bytes for file in artifact.manifest.files) if artifact else None
