"""Whether every rank sees the run's folder: its shards, signs and orders pass through there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from raylm.errors import HostError

APPEAR_S = 60.0
"""What a file system of a network may take to show on one node what another has written."""
NOT_SHARED_HINT = (
    "put the store on a disk that all nodes mount at the same path (RAYLM_STORE, --store), or "
    "train on one node"
)
_LOOK_S = 0.2


def check_shared(folder: Path, *, world_size: int) -> None:
    """See that every rank finds the folder that the driver has made; all ranks call it together.

    Its name is drawn anew for every attempt, so that a folder of an earlier one cannot be taken
    for it.

    Raises:
        HostError: a rank does not; all ranks raise it, with the hosts of those that do not.
    """
    import torch.distributed as dist

    told: list[str | None] = [None] * world_size
    dist.all_gather_object(told, None if _appears(folder) else os.uname().nodename)
    missing = [f"rank {rank} on {host}" for rank, host in enumerate(told) if host is not None]
    if missing:
        raise HostError(
            f"{folder.parent.parent} is not shared between the nodes: {', '.join(missing)} does "
            "not see what the driver has written there",
            code="store-not-shared",
            hint=NOT_SHARED_HINT,
        )


def _appears(folder: Path) -> bool:
    deadline = time.monotonic() + APPEAR_S
    while not folder.is_dir():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
