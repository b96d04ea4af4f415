"""One rank of two, for test_shared.py: `python -m tests.train.unshared RANK MEETING_FILE WORK`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.train import shared
from raylm.train.loop import Job, run_rank


def main(rank: int, place: str, work: Path) -> None:
    shared.APPEAR_S = 1.0
    dist.init_process_group("gloo", f"file://{place}", rank=rank, world_size=2)
    job = Job(
        ModelConfig(), TrainConfig(), work / "data", work, 0, "c", resume=True,
        result=work / "model", attempt="a1",
    )  # fmt: skip
    try:
        run_rank(job, rank=rank, world_size=2, local_workers=2)
    except HostError as error:
        print(error.code, error.message, sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
