"""Nodes that are lost, told to go, or come, on a cluster of several nodes on one machine.

A run of two workers, each on a node of its own; the head's node has the driver, and is never
lost. A run of a fixed number of workers waits for another node in the lost one's place, and its
losses are those of an undisturbed run bit for bit. An elastic one goes on with what there is, and
they differ by the rounding of other sums.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.local import Nodes, local_nodes
from raylm.store import Store
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import Sign, read_signs
from tests.campaign.case import BEYOND, STEPS_PER_FAULT, Case, Note, Plan, next_step
from tests.campaign.seen import EVERY, Seen, largest_difference
from tests.cluster.elastic import Elastic, drain
from tests.train.series import WORLD_SIZE_TOLERANCE

Fault = Callable[[Elastic, Sign], None]
"""What happens to the node of a rank; `Elastic.mark` notes when."""


def killed(run: Elastic, sign: Sign) -> None:
    run.mark()
    run.nodes.kill_node(run.node_of(sign))


def killed_and_replaced(run: Elastic, sign: Sign) -> None:
    killed(run, sign)
    run.nodes.add_node()


def cut_off_and_replaced(run: Elastic, sign: Sign) -> None:
    """Its processes live on, and hear nothing; the rank there ends itself."""
    run.mark()
    run.nodes.cut_link(run.node_of(sign))
    run.nodes.add_node()


def told_to_go(run: Elastic, sign: Sign) -> None:
    """The ranks save, and go on on the node that has come before."""
    with run.halted():  # or a run this short would be over before its driver looks
        run.nodes.add_node()
        run.mark()
        drain(run.nodes, sign.node_id)
        run.until(run.told_to_stop)
    run.until(lambda: not run.told_to_stop())
    # Steps that were under way are done; none of them is lost.
    run.mark(run.hit_s)


def one_more(run: Elastic, sign: Sign) -> None:
    with run.halted():
        run.mark()
        run.nodes.add_node()
        run.until(run.told_to_stop)
    run.until(lambda: not run.told_to_stop())
    run.mark(run.hit_s)


FIXED: dict[str, Fault] = {
    "a node killed, another in its place": killed_and_replaced,
    "a node's link cut, another in its place": cut_off_and_replaced,
    "a node told to go (preemption notice), another in its place": told_to_go,
}
FEWER, MORE = "a node killed: one worker less", "a node more: one worker more"
ELASTIC: dict[str, Fault] = {FEWER: killed, MORE: one_more}
FAULTS = FIXED | ELASTIC


@contextmanager
def several() -> Iterator[tuple[Nodes, Path]]:
    """Nodes, and a store that has the dataset."""
    with (
        tempfile.TemporaryDirectory(prefix="raylm-campaign-") as folder,
        local_nodes(3, num_cpus=1, head_cpus=0, isolate=True) as nodes,
    ):
        data = Path(folder, "data")
        data.mkdir()
        with _running(Elastic(nodes, data, until="data")) as run:
            run.end()
        yield nodes, data


def campaign(nodes: Nodes, data: Path, case: Case, plan: Plan, note: Note) -> bool:
    """Faults of nodes in one run; whether its losses and model are as they should be."""
    is_elastic, draw = case.kind == "elastic", plan.draw(case)
    names = plan.chosen(ELASTIC if is_elastic else FIXED)
    if not is_elastic:  # there one worker less comes before one more
        draw.shuffle(names)
    # Twice as many as elsewhere: to look for a rank's node takes a second. The same of both kinds,
    # so that one undisturbed run is enough.
    num_steps = 2 * STEPS_PER_FAULT * (plan.rounds * len(FIXED) + 1)
    changes = {
        "precision": case.precision, "zero": case.zero, "steps": num_steps,
        "checkpoint": f"{{every_steps: {EVERY}}}",
        "workers": "{min: 1, max: 2}" if is_elastic else 2,
    }  # fmt: skip
    expected, models = _undisturbed(nodes, data, changes | {"workers": 2})
    store = data.with_name(f"{case}-hit")
    shutil.copytree(data, store)
    seen = []
    with _running(Elastic(nodes, store, **changes)) as run:
        for fault in names:
            if plan.is_over:
                break
            at = next_step(max(run.losses(), default=0), draw)
            run.until(lambda at=at: max(run.losses(), default=0) >= at)
            one = _meet(run, fault, draw.choice(read_signs(run.work)), case)
            if is_elastic:  # what differs grows with the steps: all of them tell
                seen.append(one)
            else:
                note(replace(one, max_loss_difference=largest_difference(run.losses(), expected)))
        run.end()
        found = run.losses()
    difference = largest_difference(found, expected)
    for one in seen:
        note(replace(one, max_loss_difference=difference))
    if is_elastic:
        return found.keys() == expected.keys() and difference <= WORLD_SIZE_TOLERANCE["fp32"]
    return found == expected and _models(store) == models and len(models) == 1


def _undisturbed(
    nodes: Nodes, data: Path, changes: dict[str, object]
) -> tuple[dict[int, float], set[str]]:
    """Losses and model; trained once."""
    store = data.with_name(f"{changes['precision']}-{changes['zero']}")
    if not store.exists():
        shutil.copytree(data, store)
        with _running(Elastic(nodes, store, **changes)) as run:
            run.end()
    (work,) = store.glob("runs/*/train-*")
    losses = {x["step"]: x["loss"] for x in read_metrics(work / METRICS) if "loss" in x}
    assert len(losses) == changes["steps"]
    return losses, _models(store)


@contextmanager
def _running(run: Elastic) -> Iterator[Elastic]:
    try:
        yield run
    finally:
        run.kill()


def _models(store: Path) -> set[str]:
    return {artifact.digest for artifact in Store(store).list("model")}


def _meet(run: Elastic, fault: str, sign: Sign, case: Case) -> Seen:
    lost = run.node_of(sign)
    FAULTS[fault](run, sign)
    run.until(lambda: len(_gone_on(run)) > 1)
    began, first, *_ = _gone_on(run)
    assert began["workers"] == (1 if fault == FEWER else 2)
    run.until(lambda: max(run.losses()) >= run.furthest + BEYOND)
    if fault != MORE:  # what may be left there
        run.nodes.kill_node(lost)
    return Seen(
        fault,
        case.precision,
        case.zero,
        run.furthest,
        run.furthest - began["step"],
        round(first["time"] - run.hit_s, 1),
        math.inf,
    )


def _gone_on(run: Elastic) -> list[dict[str, Any]]:
    """What the next attempt has written: that it begins, and its steps."""
    lines = list(read_metrics(run.work / METRICS))
    begun = [
        place
        for place, line in enumerate(lines)
        if line.get("event") == "resume" and line["time"] > run.hit_s
    ]
    return [lines[begun[-1]], *(x for x in lines[begun[-1] :] if "loss" in x)] if begun else []
