"""Finite numbers: the norm of a gradient, and whether weights are what can be trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed


def grad_norm(parameters: Iterable[torch.nn.Parameter]) -> float:
    """The 2-norm of all gradients together, in fp32; NaN and infinity go through.

    The same as DeepSpeed's with ZeRO: of gradients that are averaged over ranks and
    accumulation, before they are clipped.
    """
    found = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(found))


def all_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether every weight on every rank is a finite number; all ranks call it together.

    Under ZeRO 3 each rank looks at its shares, and nothing is gathered.
    """
    held = [getattr(p, "ds_tensor", p).detach() for p in parameters]
    # The largest magnitude: nothing is allocated, and no sum overflows in half precision.
    largest = [float(torch.linalg.vector_norm(t, math.inf)) for t in held if t.numel()]
    box = torch.tensor([sum(not math.isfinite(x) for x in largest)], dtype=torch.float64)
    torch.distributed.all_reduce(box)
    return not float(box)
