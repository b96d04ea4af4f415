"""The campaign of faults, once in every case."""

from pathlib import Path

import pytest

from tests.campaign import CASES, FAULTS, can_mount_here, main, read

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(5400)]


def test_every_fault_is_got_over_bit_for_bit(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    assert main(["run", "--out", str(out)]) == 0
    seen = read([out])
    num_faults = len(FAULTS) if can_mount_here() else len(FAULTS) - 1
    assert len(seen) == len(CASES) * num_faults
    assert {s.max_loss_difference for s in seen} == {0.0}
    # Every fault costs what was done since the last checkpoint, or the one before it.
    assert max(s.steps_lost for s in seen) < 30
