"""Every preset's first losses are those that are kept: to the last digit where all is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.model.presets import PRESETS
from tests.golden import LARGE, STEPS, all_kept, kept, losses

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=pytest.mark.faults if name in LARGE else ()) for name in PRESETS],
)
def test_the_losses_of_a_preset_are_those_kept(preset: str, tmp_path: Path) -> None:
    expected, is_exact = kept()
    found = losses(preset, tmp_path)
    assert len(found) == STEPS
    assert found == (expected[preset] if is_exact else pytest.approx(expected[preset], rel=1e-5))


def test_every_preset_has_a_series_that_moves_and_is_alike_on_all_machines() -> None:
    first = all_kept()[0][1]
    for _, found in all_kept():
        assert found.keys() == PRESETS.keys()
        for preset, series in found.items():
            assert len({round(loss, 3) for loss in series}) == STEPS, preset
            assert series == pytest.approx(first[preset], rel=1e-5), preset
