"""What tells rounding from a drift."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.series import drift, residuals


def test_differences_are_relative() -> None:
    assert residuals([2.02, 3.96], [2.0, 4.0]).tolist() == pytest.approx([0.01, -0.01])


@pytest.mark.parametrize(
    ("added", "mean"),
    [
        ([4e-6, -4e-6, 4e-6, -4e-6], 0.0),  # rounding
        ([4e-6, 4e-6, 4e-6, 4e-6], 4e-6),  # each as small, all on one side
        ([0.0, 2e-6, 4e-6, 6e-6], 3e-6),  # a weight that is moved a little too far each step
    ],
)
def test_what_goes_one_way_is_told_from_what_goes_either_way(
    added: list[float], mean: float
) -> None:
    expected = np.linspace(4.5, 3.5, 4)
    assert drift(residuals(expected * (1 + np.array(added)), expected)) == pytest.approx(
        mean, abs=1e-12
    )
