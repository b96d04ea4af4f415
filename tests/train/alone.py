"""A process group of one in this process, as Ray Train sets one up around a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def group_of_one() -> Iterator[None]:
    """DeepSpeed and torch see one rank, and one thread.

    The group stays, and one that is there is used: DeepSpeed keeps clones of the first it sees.
    """
    import torch
    import torch.distributed as dist

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            patch.setenv(name, value)
        patch.setenv("DS_ACCELERATOR", "cpu")
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
