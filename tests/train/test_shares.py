import numpy as np
import pytest

from raylm.train.shares import num_micro_batches, share


@pytest.mark.parametrize("global_batch", [1, 7, 16, 30])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_sample_is_trained_on_once_by_somebody(
    global_batch: int, micro_batch: int, world_size: int
) -> None:
    parts = [share(global_batch, micro_batch, world_size, rank) for rank in range(world_size)]
    rounds = num_micro_batches(global_batch, micro_batch, world_size)
    assert {len(p) for p in parts} == {rounds}
    assert sorted(np.concatenate([x for p in parts for x in p])) == list(range(global_batch))
    assert max(len(x) for p in parts for x in p) <= micro_batch


def test_an_even_batch_is_cut_rank_after_rank() -> None:
    assert [p.tolist() for p in share(8, 2, 2, 0)] == [[0, 1], [4, 5]]
    assert [p.tolist() for p in share(8, 2, 2, 1)] == [[2, 3], [6, 7]]


def test_what_does_not_come_out_even_is_spread() -> None:
    assert [[len(x) for x in share(7, 2, 3, rank)] for rank in range(3)] == [[2, 1], [2, 0], [2, 0]]
