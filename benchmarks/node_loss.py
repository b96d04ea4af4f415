"""Seconds from the loss of a node to the first new step, and where they go.

A tiny training on two nodes of three on this machine (cluster/local; root). In its middle the node
of rank 1 is killed, or its link cut; one JSON line for each time:

    noticed     the attempt has ended, and the driver knows why
    started     the new attempt's first rank gives a sign of life
    restored    it has loaded its libraries and the checkpoint, and begins a step
    stepped     the step is done: the sum

    python -m benchmarks.node_loss [--faults kill,cut] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from cluster.local import Nodes, local_nodes
from raylm.train.signs import read_signs
from tests.cluster.elastic import Elastic


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", default="kill,cut")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        local_nodes(3, num_cpus=1, head_cpus=0, isolate=True) as nodes,
    ):
        data = Path(folder, "data")
        data.mkdir()
        Elastic(nodes, data, until="data").end()
        whole = Path(folder, "whole")
        shutil.copytree(data, whole)
        run = Elastic(nodes, whole)
        run.end()
        losses = run.losses()
        for round_ in range(options.rounds):
            for fault in options.faults.split(","):
                while sum(bool(nodes.pids(node.index)) for node in nodes.nodes) < 3:
                    nodes.add_node()
                store = Path(folder, f"{fault}-{round_}")
                shutil.copytree(data, store)
                print(json.dumps({"fault": fault, **measure(nodes, store, fault, losses)}))


def measure(
    nodes: Nodes, store: Path, fault: str, losses: dict[int, float]
) -> dict[str, float | int]:
    """One loss, and how the run got over it."""
    run = Elastic(nodes, store)
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        lost = run.node_of(signs[1])
        step = max(run.losses())
        saved = run.newest
        assert saved is not None
        begun = time.time()
        if fault == "kill":
            nodes.kill_node(lost)
        else:
            nodes.cut_link(lost)
    old = {sign.pid for sign in signs}
    times = {"noticed": 0.0, "started": 0.0, "restored": 0.0}
    run.until(lambda: any("starting anew" in line for _, line in run.said))
    times["noticed"] = time.time() - begun
    run.until(lambda: any(sign.pid not in old for sign in read_signs(run.work)))
    times["started"] = time.time() - begun
    run.until(lambda: any(s.pid not in old and s.step >= 0 for s in read_signs(run.work)))
    times["restored"] = time.time() - begun
    run.end()
    stepped = [line["time"] for line in run.lines() if line["step"] == saved.progress.step + 1]
    nodes.kill_node(lost)
    found = run.losses()
    return {
        **{name: round(seconds, 1) for name, seconds in times.items()},
        "stepped": round(stepped[-1] - begun, 1),
        "steps_lost": step - saved.progress.step,
        "largest_difference": max(abs(found[s] / losses[s] - 1) for s in losses),
    }


if __name__ == "__main__":
    main()
