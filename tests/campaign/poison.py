"""`python -m tests.campaign.poison`: raylm, whose trainings meet losses that are no numbers.

At the steps that `poison.json` in the stage's folder names, the first rank's loss is NaN, once
each; `poisoned.json` has when. Workers import this module.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.artifact import write_atomic

if TYPE_CHECKING:
    import torch

    from raylm.data.shards import Batch
    from raylm.train.loop import Job
    from raylm.train.worker import Worker

POISON, POISONED = "poison.json", "poisoned.json"


def put_poison(work: Path, steps: list[int]) -> None:
    """At each of these numbers of steps done, the next one goes wrong."""
    write_atomic(work / POISON, json.dumps(steps))


def poisoned_at(work: Path) -> dict[int, float]:
    """Steps done before those that went wrong, and when they did: Unix times."""
    file = work / POISONED
    found = json.loads(file.read_text()) if file.exists() else {}
    return {int(step): time_s for step, time_s in found.items()}


def _take(work: Path, step: int) -> bool:
    """Whether this step is to go wrong, and has not yet."""
    steps = json.loads((work / POISON).read_text()) if (work / POISON).exists() else []
    met = poisoned_at(work)
    if step not in steps or step in met:
        return False
    write_atomic(work / POISONED, json.dumps({**met, step: time.time()}))
    return True


def poisoned_loop(settings: dict[str, Any]) -> None:
    """`train_loop`, whose first rank meets what is poisoned."""
    import ray.train

    from raylm.train.loop import train_loop
    from raylm.train.worker import Worker

    job: Job = settings["job"]
    if ray.train.get_context().get_world_rank() == 0:
        real = Worker._nll

        def nll(worker: Worker, batch: Batch) -> torch.Tensor:
            found = real(worker, batch)
            is_poisoned = found.requires_grad and _take(job.work, worker.done)
            return found * math.nan if is_poisoned else found

        Worker._nll = nll  # type: ignore[method-assign]
    train_loop(settings)


def main() -> int:
    """Run raylm's command line."""
    # Its own module's, not `__main__`'s: workers look it up by name.
    from raylm.cli import main as command
    from raylm.train import attempts
    from tests.campaign.poison import poisoned_loop as loop

    attempts.train_loop = loop
    return command()


if __name__ == "__main__":
    sys.exit(main())
