"""Faults against trainings on real clusters, over and over, and the table of what they cost.

    python -m tests.campaign run --out FILE.json [--seed N] [--cases fp32-2,nodes-bf16-3]
                                 [--rounds N] [--faults PATTERN] [--limit-s N]
    python -m tests.campaign table FILE.json ... [--write docs/training.md] [--json FILE]

`run` trains once undisturbed in each case (kind of faults, precision, ZeRO stage) and once while
it is hit by every fault of the kind in turn, at steps drawn from the seed. Kinds: none (processes
and disks), `nan`, `nodes` and `elastic` (several nodes on one machine, which takes the right to
make network namespaces). What was seen is added to the file after each fault, so that a campaign
that is cut short keeps what it did. If a loss or a model is not as it should be, the exit code
is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cluster.local import network
from tests.campaign import diverged, machine, nodes
from tests.campaign.case import Case, Note, Plan
from tests.campaign.run import cluster
from tests.campaign.seen import MARKS, Seen, read, table, write
from tests.marked import put_between

CASES = (
    "fp32-2", "bf16-3", "fp32-3", "bf16-2", "nan-fp32-2", "nan-bf16-3", "nodes-fp32-2",
    "nodes-bf16-3", "elastic-fp32-2", "elastic-fp32-3",
)  # fmt: skip
FAULTS = (*machine.FAULTS, *diverged.FAULTS, *nodes.FAULTS)
"""In the order of the table."""
_ON_NODES = ("nodes", "elastic")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--seed", type=int, default=0)
    runs.add_argument("--rounds", type=int, default=1)
    runs.add_argument("--cases", default=",".join(CASES))
    runs.add_argument("--faults", default="", help="a pattern in the names of those that are meant")
    runs.add_argument("--limit-s", type=float, default=1e9, help="begin no fault after it")
    tables = commands.add_parser("table")
    tables.add_argument("files", type=Path, nargs="+")
    tables.add_argument("--write", type=Path)
    tables.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options)
    seen = read(options.files)
    if options.write:
        put_between(options.write, MARKS, table(seen, FAULTS))
    else:
        print(table(seen, FAULTS))
    if options.json:
        write(options.json, seen)
    return 0


def _run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = Plan(
        options.rounds, options.seed, time.monotonic() + options.limit_s, only=options.faults
    )
    cases = [Case.of(name) for name in options.cases.split(",")]
    here = [case for case in cases if case.kind not in _ON_NODES]
    away = [case for case in cases if case.kind in _ON_NODES]

    def note(one: Seen) -> None:
        print(json.dumps(asdict(one)), file=sys.stderr, flush=True)
        known = read([options.out]) if options.out.exists() else []
        write(options.out, [*known, one])

    as_it_should = True
    if here and not machine.can_mount() and machine.can_mount_in_a_name_space():
        # In a mount name space of its own: what is mounted there is gone with it.
        command = ["unshare", "-rm", sys.executable, "-m", "tests.campaign", "run"]
        for name in ("out", "seed", "rounds", "faults", "limit_s"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += ["--cases", ",".join(map(str, here))]
        env = {**os.environ, "RAYLM_CAMPAIGN_MOUNTS": "1"}
        as_it_should = _in_the_foreground(command, env) == 0
    elif here:
        as_it_should = _on_one_machine(here, plan, note)
    if away and not network.may_isolate():
        print(f"no case of {', '.join(_ON_NODES)}: {network.NO_RIGHTS}", file=sys.stderr)
    elif away and not plan.is_over:
        with nodes.several() as (found, data):
            done = [nodes.campaign(found, data, c, plan, note) for c in away if not plan.is_over]
        as_it_should = as_it_should and all(done)
    return 0 if as_it_should else 1


def _on_one_machine(cases: Sequence[Case], plan: Plan, note: Note) -> bool:
    campaigns = {"": machine.campaign, "nan": diverged.campaign}
    with (
        # What is mounted in it cannot be removed before the name space is gone.
        tempfile.TemporaryDirectory(prefix="raylm-campaign-", ignore_cleanup_errors=True) as store,
        cluster(Path(store)) as config,
    ):
        done = [campaigns[c.kind](config, c, plan, note) for c in cases if not plan.is_over]
    return all(done)


def _in_the_foreground(command: Sequence[str], env: dict[str, str]) -> int:
    """Run a command that hears of the signals that this process gets, and cleans up after them."""
    child = subprocess.Popen(command, env=env)
    # Ctrl-C reaches both, being of one group; SIGTERM is passed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
