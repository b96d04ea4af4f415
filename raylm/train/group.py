"""The process group of a training's ranks, as each of Ray's workers joins it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def joined(backend: str) -> Iterator[None]:
    """Be a rank of the workers' process group, with the names that DeepSpeed asks for it."""
    import ray.train
    import ray.util
    import torch
    import torch.distributed

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    local_rank = context.get_local_rank()
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank,
             "LOCAL_WORLD_SIZE": context.get_local_world_size()}  # fmt: skip
    os.environ |= {name: str(value) for name, value in names.items()}
    if "nccl" in backend:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    if name := interface_of(ray.util.get_node_ip_address()):
        # Else gloo takes what the host's name resolves to: another network, or loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    torch.distributed.init_process_group(backend, "env://", rank=rank, world_size=size)
    yield
    # Not after an error: a rank that is gone might be waited for, and this process ends anyway.
    torch.distributed.destroy_process_group()


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            return name
    return None
