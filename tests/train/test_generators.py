"""What a rank draws after a restart is what it would have drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raylm.train.generators import load_generators, save_generators, seed_generators


def test_a_rank_goes_on_drawing_where_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.rand(5)
    save_generators(tmp_path, 1, gpu=False)
    expected = torch.rand(5)
    torch.manual_seed(4)
    load_generators(tmp_path, 1, gpu=False)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_so_does_its_gpu(tmp_path: Path) -> None:
    torch.cuda.manual_seed(3)
    save_generators(tmp_path, 0, gpu=True)
    expected = torch.rand(5, device="cuda")
    torch.cuda.manual_seed(4)
    load_generators(tmp_path, 0, gpu=True)
    assert torch.equal(torch.rand(5, device="cuda"), expected)


def test_new_ranks_draw_differently_and_the_same_at_every_attempt() -> None:
    drawn = {}
    for rank in (0, 1):
        for attempt in (0, 1):
            torch.manual_seed(attempt)
            seed_generators(7, 40, rank)
            drawn[rank, attempt] = tuple(torch.rand(3).tolist())
    assert drawn[0, 0] == drawn[0, 1]
    assert drawn[1, 0] == drawn[1, 1]
    assert drawn[0, 0] != drawn[1, 0]
