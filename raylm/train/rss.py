"""The memory of this process, and its peak since a moment of one's choice."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

_SELF = Path("/proc/self")


def rss_bytes() -> int:
    """Resident memory now; shared libraries count in every process that maps them."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_rss_bytes() -> int:
    """The most that was resident since `reset_peak_rss`, or since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_rss() -> None:
    """Begin a new peak: a worker of Ray may have done other work before.

    Kernels without CONFIG_PROC_PAGE_MONITOR keep the old one.
    """
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The peak of what decides whether a worker fits: a GPU's memory, else the process's."""
    import torch

    if torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    return peak_rss_bytes()


def memory_bytes() -> int:
    """What is held now of the same memory."""
    import torch

    if torch.cuda.is_initialized():
        return int(torch.cuda.memory_reserved())
    return rss_bytes()


def max_over_ranks(value: int) -> int:
    """The largest of all workers' values; all call it together."""
    import torch
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    box = torch.tensor([value], dtype=torch.int64, device=device)
    torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
    return int(box)
