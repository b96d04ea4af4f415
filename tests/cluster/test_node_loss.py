"""A node lost in the middle of a training, in short: `make faults` has all that may befall one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.local import local_nodes, network
from raylm.train.metrics import METRICS, read_metrics
from tests.cluster.elastic import STEPS, Elastic
from tests.train.series import WORLD_SIZE_TOLERANCE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not network.may_isolate(), reason=network.NO_RIGHTS),
]


def losses_of_one_process(run: Elastic) -> dict[int, float]:
    """Train the same once more, from the beginning, without Ray and its nodes."""
    words = ["train", *run.config_words, "--set", "train.workers=0", "--force", "train"]
    done = subprocess.run(
        [sys.executable, "-m", "raylm", *words],
        env={**os.environ, "RAYLM_STORE": str(run.store)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run.losses()


def test_a_run_goes_on_without_a_node_that_is_killed_and_its_losses_say_so(tmp_path: Path) -> None:
    # Each has a rank; the head has the driver beside it.
    with local_nodes(2, num_cpus=1) as nodes:
        run = Elastic(nodes, tmp_path)
        try:
            run.until(lambda: run.has(step=10, ranks=2))
            with run.halted() as signs:
                saved = run.newest
                assert saved is not None
                assert {run.node_of(sign) for sign in signs} == {0, 1}
                nodes.kill_node(1)
            assert run.end() == {"data": "done", "train": "done"}
        finally:
            run.kill()
    assert "starting anew from the last checkpoint" in run.story()
    begun = [line for line in read_metrics(run.work / METRICS) if "event" in line]
    assert [(line["event"], line["step"], line["workers"]) for line in begun] == [
        ("start", 0, 2), ("resume", saved.progress.step, 1),
    ]  # fmt: skip
    found = run.losses()
    expected = losses_of_one_process(run)
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [found[step] for step in expected],
        list(expected.values()),
        rtol=WORLD_SIZE_TOLERANCE["fp32"],
    )
