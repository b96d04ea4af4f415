"""Two ranks, then one, then two: every ZeRO stage goes on as if nothing had changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.train.resharding import CHANGES, STEPS
from tests.train.series import WORLD_SIZE_TOLERANCE
from tests.train.test_worker import dataset

pytestmark = pytest.mark.timeout(600)
Figures = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.faults)])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Figures]:
    folder = tmp_path_factory.mktemp("reshard")
    data = dataset(folder / "data", "text")
    (folder / "out").mkdir()
    words = [request.param, str(data), str(folder / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.resharding", *words],
        env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("whole", *(f"from {step}" for step in CHANGES))
    return {name: json.loads((folder / "out" / f"{name}.json").read_text()) for name in names}


def test_the_losses_are_those_of_an_uninterrupted_run(
    found: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    # What bf16 rounds away is not the same in sums of other parts.
    rtol = WORLD_SIZE_TOLERANCE["bf16" if "bf16" in request.node.name else "fp32"]
    first, *_ = CHANGES
    for case, figures in found["whole"].items():
        whole = figures["losses"]
        assert len(whole) == STEPS
        pieces = [found[f"from {step}"][case]["losses"] for step in CHANGES]
        np.testing.assert_allclose(sum(pieces, whole[:first]), whole, rtol=rtol, err_msg=case)
        assert whole[-1] < 0.9 * whole[0]


def test_every_stage_trains_the_same(
    found: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    rtol = 5e-3 if "bf16" in request.node.name else 2e-5
    for zero in (0, 1, 3):
        losses = [found["whole"][f"zero{z}"]["losses"] for z in (zero, 2)]
        np.testing.assert_allclose(*losses, rtol=rtol, err_msg=f"ZeRO {zero}")


def test_weights_and_moments_are_cut_anew_to_the_last_bit(found: dict[str, Figures]) -> None:
    for step in CHANGES:
        differences = {case: x["differences"] for case, x in found[f"from {step}"].items()}
        assert not any(differences.values()), differences


def test_each_group_keeps_its_decay_and_each_state_its_step(found: dict[str, Figures]) -> None:
    for name, end in (("whole", STEPS), ("from 4", 8), ("from 8", 12)):
        books = {case: (x["steps"], x["decays"]) for case, x in found[name].items()}
        assert books == dict.fromkeys(books, ([end], [0.1, 0.0]))
