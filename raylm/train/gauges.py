"""What each rank saw of a step, told to all in the all-reduce that sums the loss.

A sum over ranks in which each fills places of its own is a gather: the largest wait and the
fullest worker cost no collective beside the one that is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed

from raylm.train.recent import Recent
from raylm.train.rss import memory_bytes, peak_memory_bytes

_SIZE = 3


@dataclass(frozen=True, slots=True)
class Gauge:
    """One rank's figures of one step."""

    data_wait_s: float
    """Time in which the step waited for its samples to be read and packed."""
    memory_bytes: int
    """Held now: a GPU's memory, else what is resident."""
    peak_memory_bytes: int
    """The most so far."""


def read_gauge(data_wait_s: float) -> Gauge:
    """This process's."""
    return Gauge(data_wait_s, memory_bytes(), peak_memory_bytes())


def sum_and_gather(
    value: torch.Tensor, gauge: Gauge, *, rank: int, world_size: int
) -> tuple[float, list[Gauge]]:
    """The sum of a float64 [1] over ranks, and every rank's gauge; all call it together."""
    others, place = [0.0] * (_SIZE * world_size), _SIZE * rank
    others[place : place + _SIZE] = gauge.data_wait_s, gauge.memory_bytes, gauge.peak_memory_bytes
    box = torch.tensor([float(value), *others], dtype=torch.float64)
    torch.distributed.all_reduce(box)
    total, *rest = box.tolist()
    told = [rest[i : i + _SIZE] for i in range(0, len(rest), _SIZE)]
    return total, [Gauge(wait, int(now), int(peak)) for wait, now, peak in told]


def live_figures(
    ranks: list[Gauge], recent: Recent, peak_flops: float | None, left_s: float | None
) -> dict[str, float | None]:
    """What a line of metrics.jsonl says of speed and memory; None is unknown.

    Args:
        ranks: every rank's gauge, the first rank's first.
        peak_flops: of all workers together, FLOP/s.
    """
    rate, flops = recent.tokens_per_s, recent.flops_per_s
    share = flops / peak_flops if flops and peak_flops else None
    return {
        "recent_tokens_per_s": None if rate is None else round(rate, 1),
        # More than the peak is a peak measured on a machine that was busy then.
        "mfu": None if share is None or share > 1 else round(share, 4),
        "left_s": None if left_s is None else round(left_s, 1),
        "data_wait_s": round(max(gauge.data_wait_s for gauge in ranks), 6),
        "memory_bytes": ranks[0].memory_bytes,
        "memory_peak_bytes": ranks[0].peak_memory_bytes,
        "max_memory_bytes": max(gauge.memory_bytes for gauge in ranks),
        "max_memory_peak_bytes": max(gauge.peak_memory_bytes for gauge in ranks),
    }
