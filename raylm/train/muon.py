"""Muon: matrices that follow their orthogonalized momentum, the same under every ZeRO stage.

K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024); each step
is scaled to the size that AdamW's usually has (Liu and others, arXiv 2502.16982, section 2.2), so
that AdamW's rate fits. DeepSpeed's own Muon is not used: with ZeRO it clips the orthogonalized
step instead of the gradient, so that stages differ and the norm tells nothing, and it compiles its
kernels at first use. Here all of it happens in the optimizer's step. ZeRO leaves an optimizer a
flat share of each group; the shares are put together to matrices, a bucket at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from raylm.train.zero import MUON_BUCKET_ELEMENTS

Shapes = Sequence[tuple[int, int]]


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[n, m] float32, with all singular values brought near 1 (0.7 to 1.2) by a quintic
    Newton-Schulz iteration. Products are bf16 on GPUs, as Jordan has them, and float32 on CPUs,
    many of which are slow in bf16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    x = x if x.device.type == "cpu" else x.bfloat16()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


def step_size(shape: tuple[int, int]) -> float:
    """What makes an orthogonal matrix's elements 0.2 large on average, as AdamW's steps are."""
    return 0.2 * math.sqrt(max(shape))


@dataclass(frozen=True, slots=True)
class Part:
    """What of one matrix lies in a rank's flat share of its group."""

    start: int
    """In the share."""
    offset: int
    """In the matrix."""
    length: int


def parts_of(shapes: Shapes, zero: int, rank: int, world_size: int, share: int) -> list[Part]:
    """A rank's part of every matrix of a group; pure.

    ZeRO 1 and 2 cut the group, laid out flat, into equal shares; ZeRO 3 cuts each matrix.

    Args:
        share: elements of the rank's flat share, padding included.
    """
    found, at = [], 0
    for shape in shapes:
        size = math.prod(shape)
        if zero == 3:
            part = -(-size // world_size)
            offset = min(size, rank * part)
            found.append(Part(at, offset, min(part, size - offset)))
            at += part
        else:
            low, high = max(at, rank * share), min(at + size, (rank + 1) * share)
            length = max(0, high - low)
            found.append(Part(low - rank * share, low - at, length) if length else Part(0, 0, 0))
            at += size
    return found


def buckets(shapes: Shapes, limit: int = MUON_BUCKET_ELEMENTS) -> Iterator[range]:
    """Runs of matrices of at most `limit` elements, or of one that is larger; pure."""
    start, size = 0, 0
    for index, shape in enumerate(shapes):
        if size and size + math.prod(shape) > limit:
            yield range(start, index)
            start, size = index, 0
        size += math.prod(shape)
    if size:
        yield range(start, len(shapes))


class Orthogonal(torch.optim.AdamW):
    """Muon for groups that have `shapes`, AdamW for the others.

    The name has no "muon" in it, by which DeepSpeed would take over. State has AdamW's names,
    which are the only ones that DeepSpeed reshards: the momentum is `exp_avg`, and `exp_avg_sq` is
    a zero that takes no memory.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: list[dict[str, Any]], zero: int, **options: Any) -> None:
        super().__init__(groups, **options)
        self._zero = zero

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step on whatever has a gradient; with ZeRO all ranks call it together."""
        assert closure is None, "DeepSpeed computes no gradient anew"
        groups = self.param_groups
        self.param_groups = [group for group in groups if "shapes" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "shapes" in group:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "exp_avg" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
        if "exp_avg_sq" not in state or any(state["exp_avg_sq"].stride()):
            state["exp_avg_sq"] = torch.zeros((), device=parameter.device).expand_as(parameter)
        state["step"] += 1
        momentum = group["momentum"]
        state["exp_avg"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(state["exp_avg"], momentum)  # Nesterov's
        if parameter.ndim == 2:
            update = orthogonalized(update) * step_size((parameter.shape[0], parameter.shape[1]))
        else:
            orthogonalize_shares(update, group["shapes"], self._zero)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def orthogonalize_shares(share: torch.Tensor, shapes: Shapes, zero: int) -> None:
    """Replace a rank's flat share of a group's momentum by its share of the steps.

    All ranks call it together. A matrix is orthogonalized by one of them, in turn.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = parts_of(shapes, zero, rank, world_size, share.numel())
    for bucket in buckets(shapes):
        sizes = [math.prod(shapes[index]) for index in bucket]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        whole = share.new_zeros(sum(sizes))
        mine = [
            (
                share.narrow(0, part.start, part.length),
                whole.narrow(0, at + part.offset, part.length),
            )
            for at, part in zip(starts, (parts[index] for index in bucket), strict=True)
        ]
        for own, place in mine:
            place.copy_(own)
        # Each adds zeros to the others' parts, which is exact.
        _sum(whole, world_size)
        for index, start, size in zip(bucket, starts, sizes, strict=True):
            matrix = whole.narrow(0, start, size).view(*shapes[index])
            if index % world_size == rank:
                matrix.copy_(orthogonalized(matrix) * step_size(shapes[index]))
            else:
                matrix.zero_()
        _sum(whole, world_size)
        for own, place in mine:
            own.copy_(place)


def _sum(tensor: torch.Tensor, world_size: int) -> None:
    if world_size > 1:
        torch.distributed.all_reduce(tensor)
