"""raylm plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, human_bytes, human_s, table
from raylm.cli.progress import progress

if TYPE_CHECKING:
    from raylm.config.train import TrainConfig
    from raylm.plan import Plan


def plan(
    config: Config = None,
    sets: Sets = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run three real training steps, and keep nothing.")
    ] = False,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Say what the training will cost: memory, disk, time; exit code 3 if it does not fit here.

    Without --probe nothing is started, and time is estimated from the speed of a matrix product.
    """
    loaded = read_config(config, sets)
    from raylm.plan import make_plan, require_fit
    from raylm.store import Store

    with progress() as report:
        made = make_plan(loaded, Store(store or loaded.config.store), probing=probe, report=report)
    emit(made.to_dict(), plan_text(made), output)
    require_fit(made)


def plan_text(plan: Plan) -> str:
    """The plan for people: a table for each of memory, disk and time, and what is not known."""
    train = plan.config
    head = (
        f"{plan.subject.num_parameters / 1e6:,.1f}M parameters, {plan.subject.seq_len} tokens a "
        f"sequence, {_workers(train)}, ZeRO {train.zero}, {train.precision}, micro-batch "
        f"{train.micro_batch}" + (", activation checkpointing" * train.activation_checkpointing)
    )
    notes = [f"precision: {plan.precision_why}"] if plan.precision_why else []
    notes += [f"not known: {line}" for line in plan.unknown]
    if plan.nearest:
        sets = " ".join(f"--set {key}={value}" for key, value in plan.nearest.items())
        notes.append(f"does not fit; this would: {sets}")
    blocks = [head, _memory(plan), _disk(plan), _time(plan), "\n".join(notes)]
    return "\n\n".join(block for block in blocks if block)


def _workers(train: TrainConfig) -> str:
    return "no workers (in this process)" if train.is_alone else f"{train.max_workers} workers"


def _memory(plan: Plan) -> str:
    parts = sorted(plan.memory.parts().items(), key=lambda part: -part[1])
    peak = [human_bytes(plan.memory.total_bytes)]
    if plan.probe:
        peak.append(human_bytes(plan.probe.peak_memory_bytes))
    most = plan.largest_micro_batch
    rows = [
        *([f"  {name}", human_bytes(size)] for name, size in parts if size),
        [f"peak, {plan.memory.moment}", *peak],
        ["it has", _known(plan.room_bytes, human_bytes)],
        ["largest micro-batch that fits", "-" if most is None else str(most)],
    ]
    if plan.host_peak_bytes:
        if plan.host_bytes:
            rows.append(["in its host's memory", human_bytes(plan.host_bytes)])
        rows.append(["most in its host's memory", human_bytes(plan.host_peak_bytes)])
        rows.append(["its host has", _known(plan.host_room_bytes, human_bytes)])
    return _table("memory of a worker", rows)


def _disk(plan: Plan) -> str:
    disk = plan.disk
    rows = [
        ["a checkpoint", human_bytes(disk.checkpoint_bytes)],
        [
            f"{disk.num_checkpoints} checkpoints at most",
            human_bytes(disk.num_checkpoints * disk.checkpoint_bytes),
        ],
        ["the model", human_bytes(disk.model_bytes)],
        ["the dataset", _known(disk.dataset_bytes, human_bytes)],
        ["together", human_bytes(disk.total_bytes)],
        ["free", human_bytes(plan.free_disk_bytes)],
        *([["there from before", human_bytes(plan.there_bytes)]] if plan.there_bytes else []),
    ]
    return _table("disk", rows)


def _time(plan: Plan) -> str:
    pace, probe = plan.pace, plan.probe

    def tokens(rate: float) -> str:
        return f"{rate:,.0f} tokens/s"

    speed = ["speed", _known(pace.tokens_per_s, tokens)]
    time = ["time", _known(pace.train_s, human_s)]
    rows = [
        ["steps", _known(pace.steps, "{:,}".format)],
        ["tokens", _known(pace.tokens, "{:,}".format)],
        ["passes over the data", _known(pace.epochs, "{:.2f}".format)],
        ["peak of all workers", _known(pace.peak_flops, lambda f: f"{f / 1e9:,.0f} GFLOP/s")],
        ["bound by that peak", _known(pace.roofline_tokens_per_s, tokens)],
    ]
    if probe:
        speed.append(tokens(probe.tokens_per_s))
        time.append(_known(plan.expected_s, human_s))
        rows.append(["MFU", "", _known(plan.mfu, "{:.0%}".format)])
    return _table("time", [*rows, speed, time])


def _table(title: str, rows: list[list[str]]) -> str:
    width = max(len(row) for row in rows)
    head = [title, "predicted", "measured"][:width]
    return table(head, [row + [""] * (width - len(row)) for row in rows])


def _known(value: float | None, form: Callable[[Any], str]) -> str:
    return "not known" if value is None else form(value)
