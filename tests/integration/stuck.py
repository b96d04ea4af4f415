"""A training whose second rank lives and gets nowhere, once; workers import it."""

from __future__ import annotations

import time
from typing import Any

from raylm.train.loop import Job, train_loop

CALLS = 20
"""Of batches that are read: two a step, and four at the start."""


def stuck_loop(settings: dict[str, Any]) -> None:
    """`train_loop`; in the first attempt the second rank's data source never returns."""
    import ray.train

    from raylm.data.shards import Batch
    from raylm.train.source import Source

    job: Job = settings["job"]
    was_stuck = job.work / "was-stuck"
    if ray.train.get_context().get_world_rank() == 1 and not was_stuck.exists():
        real, calls = Source.batch, [0]

        def batch(source: Source, *arguments: Any) -> Batch:
            calls[0] += 1
            if calls[0] == CALLS:
                was_stuck.touch()
                while True:
                    time.sleep(0.01)
            return real(source, *arguments)

        Source.batch = batch  # type: ignore[method-assign]
    train_loop(settings)
