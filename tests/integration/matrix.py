"""What runs inside one Ray Train worker group, so that it is started once for all cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.config.train import OptimizerConfig

MUON = OptimizerConfig(name="muon", lr=1e-2)
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"zero": 0},
    "zero2": {"zero": 2},
    "zero3": {"zero": 3},
    # Of 8 samples 3 and 3, then 1 and 1.
    "uneven": {"zero": 2, "micro_batch": 3},
    "checkpointed activations": {"zero": 2, "activation_checkpointing": True},
    "bf16": {"zero": 2, "precision": "bf16"},
    **{f"muon{zero}": {"zero": zero, "optimizer": MUON} for zero in (0, 1, 2, 3)},
}


def train_matrix(settings: dict[str, Any]) -> None:
    """Train every case of `settings["cases"]` and of `settings["series"]`, and write the losses
    from the first rank: of the latter as `Series`.
    """
    import ray.train
    import torch

    from raylm.train.worker import Worker
    from tests.train.series import train_series

    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    world_size = ray.train.get_context().get_world_size()
    found = {}
    for name, changes in settings["cases"].items():
        job = settings["job"]
        config = job.config.model_copy(update=changes)
        job = replace(job, config=config, work=Path(settings["out"]) / name)
        job = replace(job, result=job.work / "model")
        if rank == 0:
            job.work.mkdir(parents=True)
        torch.distributed.barrier()
        worker = Worker(job, rank=rank, world_size=world_size)
        worker.restore()
        losses = []
        while not worker.finished():
            losses.append(worker.step().loss)
        worker.write_model()
        worker.close()
        found[name] = losses
    series = {
        name: train_series(
            case, Path(settings["out"]) / "series" / name, rank=rank, world_size=world_size
        )
        for name, case in settings["series"].items()
    }
    if rank == 0:
        Path(settings["out"], "losses.json").write_text(json.dumps(found))
        Path(settings["out"], "series.json").write_text(json.dumps(series))
