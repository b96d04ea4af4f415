"""The same losses whatever is sharded, accumulated, packed or spread, and no drift in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration.numerics import FORMAT_OF, MATRIX, STAGES, all_cases, name_of
from tests.train.alone import group_of_one
from tests.train.series import Series, drift, residuals, train_series

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

CLOSE, ONE_SIDED = 1e-5, 1e-6
"""Relative: of every loss, and of the mean of all differences of a series."""
Found = dict[int, dict[str, Series]]


@pytest.fixture(scope="module")
def found(two_workers: Path, series_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Series by number of workers and by name; the one worker is this process."""
    cases = all_cases(tmp_path_factory.mktemp("alone"))
    work = tmp_path_factory.mktemp("work")
    with group_of_one():
        one = {
            name: train_series(case, work / name, rank=0, world_size=1)
            for name, case in cases.items()
        }
    two = json.loads((two_workers / "series.json").read_text())
    return {1: one, 2: two}


def differences(found: Found, workers: int, name: str, figure: str = "loss") -> np.ndarray:
    expected = found[1][name_of(2, 1, "packed")]
    return residuals(found[workers][name][figure], expected[figure])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("stage", "accumulation", "layout"), MATRIX)
def test_the_losses_are_those_of_one_worker(
    found: Found, workers: int, stage: int, accumulation: int, layout: str
) -> None:
    name = name_of(stage, accumulation, layout)
    different = differences(found, workers, name)
    assert np.abs(different).max() < CLOSE
    assert abs(drift(different)) < ONE_SIDED
    assert np.abs(differences(found, workers, name, "grad_norm")).max() < CLOSE


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_no_side_of_any_axis_drifts(found: Found, axis: int) -> None:
    sides: dict[object, list[np.ndarray]] = {}
    for workers in (1, 2):
        for case in MATRIX:
            side = (workers, *case)[axis]
            sides.setdefault(side, []).append(differences(found, workers, name_of(*case)))
    for side, members in sides.items():
        assert abs(drift(np.concatenate(members))) < ONE_SIDED / 2, side


@pytest.mark.parametrize("objective", FORMAT_OF)
def test_two_workers_learn_every_objective_as_one_does(found: Found, objective: str) -> None:
    expected = found[1][objective]
    for figure in ("loss", "grad_norm"):
        different = residuals(found[2][objective][figure], expected[figure])
        assert np.abs(different).max() < CLOSE
    assert abs(drift(residuals(found[2][objective]["loss"], expected["loss"]))) < ONE_SIDED
    assert len(set(expected["loss"])) == len(expected["loss"])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_descends_alike_in_bf16(found: Found, workers: int, stage: int) -> None:
    """A gradient divided once more (DeepSpeed issue 7839), or an optimizer that believes that it
    has seen one more (raylm/train/fresh_state.py), would not descend as far.
    """
    whole, half = (
        np.array(found[workers][name]["loss"])
        for name in (name_of(2, 2, "packed"), f"bf16 zero{stage}")
    )
    np.testing.assert_allclose(half, whole, rtol=5e-3)
    assert half[0] - half[-1] == pytest.approx(whole[0] - whole[-1], rel=0.02)
