"""Muon: what a step does to a matrix, and which part of it lies with which rank."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from raylm.config.train import TrainConfig
from raylm.train.muon import (
    buckets,
    orthogonalize_shares,
    orthogonalized,
    parts_of,
    step_size,
)
from raylm.train.optimizer import hidden_matrices, make_optimizer
from tests.train.packing import tiny

SHAPES = [(4, 6), (3, 3), (8, 2), (5, 7)]
FLAT = torch.arange(sum(math.prod(s) for s in SHAPES), dtype=torch.float32)


@pytest.mark.parametrize("shape", [(64, 96), (48, 160), (160, 48)])
def test_all_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    aligned = torch.diagonal(u.T @ found @ v.T)
    assert float(aligned.min()) > 0.6
    assert float(found.square().mean().sqrt()) * step_size(shape) == pytest.approx(0.2, rel=0.2)


def test_a_zero_stays_zero() -> None:
    assert orthogonalized(torch.zeros(4, 8)).abs().max() == 0


def share_of(flat: torch.Tensor, zero: int, rank: int, world_size: int) -> torch.Tensor:
    """A rank's share of a group, cut as DeepSpeed cuts it."""
    if zero < 3:
        length = -(-len(flat) // (2 * world_size)) * 2
        padded = torch.nn.functional.pad(flat, (0, length * world_size - len(flat)))
        return padded[rank * length : (rank + 1) * length].clone()
    pieces = []
    for matrix in flat.split([math.prod(s) for s in SHAPES]):
        part = -(-len(matrix) // world_size)
        padded = torch.nn.functional.pad(matrix, (0, part * world_size - len(matrix)))
        pieces.append(padded[rank * part : (rank + 1) * part])
    return torch.cat(pieces)


def whole_from_shares(shares: list[torch.Tensor], zero: int) -> torch.Tensor:
    """The group, put together from the ranks' parts."""
    whole = [torch.full((math.prod(shape),), -1.0) for shape in SHAPES]
    for rank, share in enumerate(shares):
        parts = parts_of(SHAPES, zero, rank, len(shares), len(share))
        for matrix, part in zip(whole, parts, strict=True):
            place = matrix.narrow(0, part.offset, part.length)
            assert (place == -1).all(), "held twice"
            place.copy_(share.narrow(0, part.start, part.length))
    return torch.cat(whole)


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
def test_the_ranks_parts_are_every_element_once(zero: int, world_size: int) -> None:
    shares = [share_of(FLAT, zero, rank, world_size) for rank in range(world_size)]
    assert torch.equal(whole_from_shares(shares, zero), FLAT)


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_that_hold_shares_step_as_one_that_holds_the_matrices(
    zero: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks are threads here, which add in memory; tests/integration has them as processes."""
    torch.manual_seed(0)
    flat = torch.randn(len(FLAT))
    at_once, mine = threading.Barrier(world_size), threading.local()
    box: dict[int, torch.Tensor] = {}

    def add(tensor: torch.Tensor) -> None:
        box[mine.rank] = tensor.clone()
        at_once.wait(30)
        total = sum(box[rank] for rank in range(world_size))
        at_once.wait(30)
        tensor.copy_(total)

    monkeypatch.setattr("torch.distributed.get_rank", lambda: mine.rank)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world_size)
    monkeypatch.setattr("torch.distributed.all_reduce", add)
    shares = [share_of(flat, zero, rank, world_size) for rank in range(world_size)]

    def step(rank: int) -> None:
        mine.rank = rank
        orthogonalize_shares(shares[rank], SHAPES, zero)

    threads = [threading.Thread(target=step, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = [
        orthogonalized(matrix.view(shape)).flatten() * step_size(shape)
        for shape, matrix in zip(SHAPES, flat.split([math.prod(s) for s in SHAPES]), strict=True)
    ]
    torch.testing.assert_close(whole_from_shares(shares, zero), torch.cat(expected))


def test_buckets_hold_every_matrix_once_and_no_more_than_they_may() -> None:
    found = list(buckets(SHAPES, limit=40))
    assert found == [range(2), range(2, 3), range(3, 4)]
    assert list(buckets(SHAPES, limit=1)) == [range(n, n + 1) for n in range(4)]
    assert list(buckets(SHAPES)) == [range(4)]
    assert all(a.stop == b.start for a, b in pairwise(found))


@pytest.mark.parametrize(("kind", "count"), [("llama", 14), ("t5", 36), ("bert", 12)])
def test_embeddings_heads_and_norms_are_not_muons(kind: str, count: int) -> None:
    model = tiny(kind)
    chosen = {id(p) for p in hidden_matrices(model)}
    names = [name for name, p in model.named_parameters() if id(p) in chosen]
    assert len(names) == count
    outside = ("embed", "shared", "lm_head", "norm", "relative_attention_bias", "bias", "cls.")
    assert not [name for name in names if any(part in name for part in outside)]


def test_a_step_moves_matrices_by_their_own_rate_and_vectors_as_adamw_does() -> None:
    model = tiny("llama")
    config = TrainConfig.model_validate(
        {"zero": 0, "optimizer": {"name": "muon", "lr": 1e-3, "muon_lr": 1e-2, "weight_decay": 0}}
    )
    optimizer = make_optimizer(model, config)
    assert [group["peak_lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 1e-2]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    moved = {
        n: float((p.detach() - before[n]).square().mean().sqrt())
        for n, p in model.named_parameters()
    }
    for name, size in moved.items():
        # AdamW's first step is the rate, in each element; Muon's is 0.2 of it on average.
        expected = 2e-3 if "proj" in name else 1e-3
        assert size == pytest.approx(expected, rel=0.2), name
    np.testing.assert_allclose(moved["model.norm.weight"], 1e-3, rtol=1e-3)
