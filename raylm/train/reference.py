"""What the model at the start says of every answer: computed once, before the first step.

Preferences are learned against the model as it was (arXiv 2305.18290). What that model says of
a row is a pure function of the row, so that a second model on every worker is not needed: one
pass over the rows that the run will visit, in the precision it trains in, and kept beside the
checkpoints, from which a resumed run cannot compute it any more.

    <work>/reference-train.npy, reference-held_out.npy     float32 [num_samples, segments]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.arrays import write_array
from raylm.artifact import disk_errors, sync_folder
from raylm.config.train import TrainConfig
from raylm.data.shards import Split
from raylm.train.guard import most_skips
from raylm.train.objectives.objective import Ask, evaluating
from raylm.train.shares import share
from raylm.train.source import I64, Source

F32 = npt.NDArray[np.float32]


def reference_file(work: Path, split: Split) -> Path:
    """Where the figures of a split are kept."""
    return work / f"reference-{split}.npy"


def rows_of_run(source: Source, config: TrainConfig) -> I64:
    """Rows of the train split that the run can visit: those of its steps, and of the windows
    that may take the place of skipped ones. Where time ends the run, all.
    """
    num_samples = source.split.num_samples
    if config.steps is None:
        return np.arange(num_samples)
    last = (config.steps + most_skips(config.steps, config.guard)) * config.global_batch
    return np.unique(source.rows(np.arange(min(last, num_samples * -(-last // num_samples)))))


def remember(
    file: Path, ask: Ask, model: Any, source: Source, rows: I64, config: TrainConfig
) -> None:
    """Give a source the figures of its rows: those of the file, or computed by all ranks
    together and written there.

    Args:
        model: as it is before its first step, whether the run is resumed or not; only then is
            what is computed here right.
        rows: [m], the same on all ranks; other rows have no figures (NaN).
    """
    import torch

    known = torch.tensor([float(file.exists())], dtype=torch.float64)
    torch.distributed.broadcast(known, 0)  # a file that appears meanwhile must not divide ranks
    if float(known):
        source.reference = np.load(file, allow_pickle=False)
        return
    source.reference = _compute(ask, model, source, rows, config)
    if torch.distributed.get_rank() == 0:
        _write(file, source.reference)
    torch.distributed.barrier()


def _compute(ask: Ask, model: Any, source: Source, rows: I64, config: TrainConfig) -> F32:
    import torch

    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = share(len(rows), config.micro_batch, world_size, rank)
    found: list[torch.Tensor] = []
    with evaluating(model):
        for places in parts:
            # ZeRO-3 gathers parameters in every forward: a rank without a row goes along.
            batch = source.in_order(rows[places] if len(places) else rows[:1])
            found.append(ask(model, batch).float().cpu()[: len(places)])
    width = torch.tensor([max(figures.shape[1] for figures in found)])
    torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
    together = torch.zeros(len(rows), int(width))
    for places, figures in zip(parts, found, strict=True):
        together[places, : figures.shape[1]] = figures
    torch.distributed.all_reduce(together)
    table = np.full((source.split.num_samples, int(width)), np.nan, np.float32)
    table[rows] = together.numpy()
    return table


def _write(file: Path, table: F32) -> None:
    temporary = file.with_suffix(".tmp")
    with disk_errors(file.parent):
        with temporary.open("wb") as stream:
            write_array(stream, table)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(file)
        sync_folder(file.parent)
