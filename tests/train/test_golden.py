"""Every preset's first losses are those that are kept: to the last digit where all is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.model.presets import PRESETS
from tests.golden import LARGE, STEPS, kept, losses, made_with

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=pytest.mark.faults if name in LARGE else ()) for name in PRESETS],
)
def test_the_losses_of_a_preset_are_those_kept(preset: str, tmp_path: Path) -> None:
    expected = kept()["losses"][preset]
    found = losses(preset, tmp_path)
    assert len(found) == STEPS
    if kept()["made_with"] == made_with():
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-5)


def test_every_preset_has_a_series_that_moves() -> None:
    assert kept()["losses"].keys() == PRESETS.keys()
    for preset, series in kept()["losses"].items():
        assert len({round(loss, 3) for loss in series}) == STEPS, preset
