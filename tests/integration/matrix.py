"""What runs inside one Ray Train worker group, so that it is started once for all cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any


def train_matrix(settings: dict[str, Any]) -> None:
    """Train every case of `settings["cases"]` and write its losses, from the first rank."""
    import ray.train
    import torch

    from raylm.train.worker import Worker

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
    if rank == 0:
        Path(settings["out"], "losses.json").write_text(json.dumps(found))
