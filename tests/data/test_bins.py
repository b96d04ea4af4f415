import numpy as np
import pytest

from raylm.data.bins import first_fit


def rows(sizes: list[int], limit: int, window: int = 8192) -> list[int]:
    return first_fit(np.array(sizes, np.int64)[:, None], (limit,), window).tolist()


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([4], 4, [0]),
        ([4, 4], 4, [0, 1]),
        ([1, 2, 3, 4], 5, [0, 1, 1, 0]),  # 4 + 1, 3 + 2
        ([2, 2, 2, 2, 2], 4, [0, 0, 1, 1, 2]),  # equal ones in their order
        ([3, 5, 2, 5, 4, 1], 10, [1, 0, 1, 0, 1, 1]),
    ],
)
def test_the_largest_come_first_and_each_goes_into_the_first_row_with_room(
    sizes: list[int], limit: int, expected: list[int]
) -> None:
    assert rows(sizes, limit) == expected


def test_a_window_does_not_reach_into_the_next() -> None:
    assert rows([3, 1, 1, 3], 4, window=2) == [0, 0, 1, 1]
    assert rows([1, 1, 3, 3], 4, window=2) == [0, 0, 1, 2]


def test_a_pair_fits_where_both_sides_do() -> None:
    sizes = np.array([[4, 4], [4, 5], [2, 1], [2, 4]])
    assert first_fit(sizes, (8, 8)).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("window", [100, 8192])
def test_rows_hold_no_more_than_their_limit_and_are_nearly_full(window: int) -> None:
    draw = np.random.default_rng(3)
    sizes = np.minimum(draw.lognormal(4.5, 0.9, 5000).astype(np.int64) + 1, 512)
    found = first_fit(sizes[:, None], (512,), window)
    filled = np.bincount(found, sizes)
    assert filled.max() <= 512 and filled.min() > 0
    fewest = -(-int(sizes.sum()) // 512)
    # All rows of a window but one are more than half full, whatever the sizes.
    assert (filled <= 256).sum() <= -(-5000 // window)
    padding = 1 - sizes.sum() / (512 * len(filled))
    assert len(filled) <= 11 / 9 * fewest + 1
    assert padding < (0.04 if window == 100 else 0.002)


def test_the_rows_are_those_of_a_slow_first_fit() -> None:
    draw = np.random.default_rng(5)
    sizes = draw.integers(1, 33, (300, 2))
    limits = (64, 40)
    room: list[list[int]] = []
    expected = [0] * 300
    for item in sorted(range(300), key=lambda n: (-max(sizes[n, 0] / 64, sizes[n, 1] / 40), n)):
        fits = (n for n, r in enumerate(room) if all(r[s] >= sizes[item, s] for s in (0, 1)))
        row = next(fits, len(room))
        room += [list(limits)] if row == len(room) else []
        room[row] = [room[row][s] - int(sizes[item, s]) for s in (0, 1)]
        expected[item] = row
    assert first_fit(sizes, limits).tolist() == expected
