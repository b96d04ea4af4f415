import numpy as np
import pytest

from raylm.data.order import sample_indices


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_each_epoch_holds_every_sample_once(num_samples: int) -> None:
    for epoch in range(4):
        drawn = sample_indices(7, num_samples, epoch * num_samples, num_samples)
        assert drawn.dtype == np.int64
        assert sorted(drawn.tolist()) == list(range(num_samples))


def test_any_window_is_the_same_part_of_the_whole() -> None:
    whole = sample_indices(3, 101, 0, 500)
    for start, count in [(0, 1), (99, 5), (100, 1), (101, 202), (499, 1), (250, 0)]:
        part = sample_indices(3, 101, start, count)
        assert part.tolist() == whole[start : start + count].tolist()


def test_epochs_and_seeds_differ() -> None:
    first = sample_indices(0, 1000, 0, 1000)
    assert (first == sample_indices(0, 1000, 1000, 1000)).mean() < 0.02
    assert (first == sample_indices(1, 1000, 0, 1000)).mean() < 0.02
    assert (first == np.arange(1000)).mean() < 0.02


def test_every_sample_comes_first_equally_often() -> None:
    starts = np.array([sample_indices(seed, 10, 0, 10) for seed in range(1000)])
    for place in range(10):
        counts = np.bincount(starts[:, place], minlength=10)
        # 100 expected; chi-square of 9 degrees, 99.99 %: 33.7.
        assert ((counts - 100) ** 2 / 100).sum() < 33.7


def test_neighbours_in_the_corpus_are_spread() -> None:
    drawn = sample_indices(0, 10_000, 0, 10_000).astype(np.float64)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


def test_the_order_of_a_seed_never_changes() -> None:
    # Written down when it was made: a change would shift the data of every run that resumes.
    drawn = sample_indices(42, 1_000_000_007, 10**15, 4)
    assert drawn.tolist() == [445135430, 962959090, 462757799, 865246327]


def test_large_corpora_need_no_table() -> None:
    drawn = sample_indices(0, 10**12, 10**12 - 2, 4)
    assert drawn.min() >= 0 and drawn.max() < 10**12
    assert len(set(drawn.tolist())) == 4


@pytest.mark.parametrize("bad", [(0, 0, 1), (5, -1, 1), (5, 0, -1)])
def test_impossible_windows_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such samples"):
        sample_indices(0, *bad)
