"""The campaigns of faults, once in every case."""

from pathlib import Path

import pytest

from cluster.local import network
from tests.campaign import diverged, machine, nodes
from tests.campaign.__main__ import CASES, main
from tests.campaign.seen import read
from tests.train.series import WORLD_SIZE_TOLERANCE

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(5400)]


def cases(*kinds: str) -> str:
    """Those of some kinds; of processes and disks those that name none."""
    return ",".join(case for case in CASES if case.rpartition("-")[0].startswith(kinds))


def test_every_fault_of_one_machine_is_got_over_bit_for_bit(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    assert main(["run", "--out", str(out), "--cases", cases("fp32", "bf16", "nan")]) == 0
    seen = read([out])
    num_faults = len(machine.FAULTS) - (not machine.can_mount_in_a_name_space())
    assert len(seen) == 4 * num_faults + 2 * len(diverged.FAULTS)
    assert {s.max_loss_difference for s in seen} == {0.0}
    # Every fault costs what was done since the last checkpoint, or the one before it.
    assert max(s.steps_lost for s in seen) < 30


@pytest.mark.skipif(not network.may_isolate(), reason=network.NO_RIGHTS)
def test_lost_nodes_cost_steps_and_only_another_number_of_workers_a_loss(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    assert main(["run", "--out", str(out), "--cases", cases("nodes", "elastic")]) == 0
    seen = read([out])
    assert len(seen) == 2 * len(nodes.FIXED) + 2 * len(nodes.ELASTIC)
    assert {s.max_loss_difference for s in seen if s.fault in nodes.FIXED} == {0.0}
    assert max(s.max_loss_difference for s in seen) <= WORLD_SIZE_TOLERANCE["fp32"]
    assert max(s.steps_lost for s in seen) <= 10
