"""A training goes on when a node is lost, and takes up one that comes; the losses say so."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.local import Nodes, local_nodes, network
from raylm.processes import is_same
from raylm.train.signs import read_signs
from tests.cluster.elastic import STEPS, Elastic, at_work, drain
from tests.train.series import WORLD_SIZE_TOLERANCE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not network.may_isolate(), reason="no right to make network namespaces"),
]
Start = Callable[..., Elastic]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # The head has the driver and no rank: it is the node that is never lost.
    with local_nodes(3, num_cpus=1, head_cpus=0) as found:
        yield found


@pytest.fixture(scope="module")
def dataset(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("dataset")
    assert Elastic(nodes, store, until="data").end() == {"data": "done"}
    return store


@pytest.fixture
def start(nodes: Nodes, dataset: Path, tmp_path: Path) -> Iterator[Start]:
    started = []

    def begin(name: str, zero: int = 2) -> Elastic:
        store = tmp_path / name
        if not store.exists():
            shutil.copytree(dataset, store)
        started.append(Elastic(nodes, store, zero=zero))
        return started[-1]

    yield begin
    for run in started:
        run.kill()


@pytest.fixture(scope="module")
def undisturbed(
    nodes: Nodes, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    shutil.copytree(dataset, store)
    run = Elastic(nodes, store)
    assert run.end() == {"data": "skipped", "train": "done"}
    found = run.losses()
    assert sorted(found) == list(range(1, STEPS + 1))
    return found


@pytest.fixture(autouse=True)
def two_nodes_for_ranks(nodes: Nodes) -> None:
    while sum(bool(nodes.pids(node.index)) for node in nodes.nodes) < 3:
        nodes.add_node()


def assert_same_losses(found: dict[int, float], whole: dict[int, float], exact_to: int) -> None:
    """Exactly those of a run on two ranks up to a step, and by rounding others after it."""
    assert sorted(found) == sorted(whole)
    before = [step for step in whole if step <= exact_to]
    assert [found[step] for step in before] == [whole[step] for step in before]
    np.testing.assert_allclose(
        [found[s] for s in whole], list(whole.values()), rtol=WORLD_SIZE_TOLERANCE["fp32"]
    )


def test_a_killed_node_shrinks_the_run_and_a_new_one_widens_it(
    nodes: Nodes, start: Start, undisturbed: dict[int, float]
) -> None:
    run = start("run")
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        assert [sign.rank for sign in signs] == [0, 1]
        saved = run.newest
        assert saved is not None
        nodes.kill_node(run.node_of(signs[1]))
    run.until(lambda: run.has(step=saved.progress.step + 5, ranks=1))
    with run.halted() as signs:
        assert [sign.rank for sign in signs] == [0]
        nodes.add_node()
        run.until(run.told_to_stop)
    run.until(lambda: run.has(step=saved.progress.step + 10, ranks=2))
    assert run.end() == {"data": "skipped", "train": "done"}
    assert "starting anew from the last checkpoint" in run.story()
    assert "the cluster has grown; starting anew" in run.story()
    assert_same_losses(run.losses(), undisturbed, exact_to=saved.progress.step)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_every_zero_stage_shrinks(
    nodes: Nodes, start: Start, undisturbed: dict[int, float], zero: int
) -> None:
    run = start("run", zero=zero)
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        nodes.kill_node(run.node_of(signs[0]))
    run.until(lambda: run.has(step=15, ranks=1))
    assert run.end() == {"data": "skipped", "train": "done"}
    assert_same_losses(run.losses(), undisturbed, exact_to=0)


def test_a_node_that_is_cut_off_is_given_up_and_its_rank_ends(
    nodes: Nodes, start: Start, undisturbed: dict[int, float]
) -> None:
    run = start("run")
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        saved = run.newest
        assert saved is not None
        lost = run.node_of(signs[0])
        nodes.cut_link(lost)
    run.until(lambda: any(sign.pid != signs[0].pid for sign in read_signs(run.work)))
    # Rank 0 waits for a peer that it cannot reach: nobody but itself can end it.
    deadline = time.monotonic() + 30
    while is_same(signs[0].pid, signs[0].created):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run.end() == {"data": "skipped", "train": "done"}
    assert_same_losses(run.losses(), undisturbed, exact_to=saved.progress.step)
    nodes.kill_node(lost)


def test_a_node_that_is_told_to_go_is_left_and_no_step_is_done_again(
    nodes: Nodes, start: Start, undisturbed: dict[int, float]
) -> None:
    run = start("run")
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        leaving = run.node_of(signs[1])
        drain(nodes, signs[1].node_id)
        run.until(run.told_to_stop)
    run.until(lambda: not run.told_to_stop())
    last = run.newest
    assert last is not None
    assert last.progress.step == max(run.losses()), "it stopped at a checkpoint"
    run.until(lambda: run.has(step=last.progress.step + 5, ranks=1))
    assert run.end() == {"data": "skipped", "train": "done"}
    assert "has to go within" in run.story()
    assert_same_losses(run.losses(), undisturbed, exact_to=last.progress.step)
    nodes.kill_node(leaving)


def test_a_killed_driver_leaves_nothing_on_the_nodes_and_the_run_goes_on(
    nodes: Nodes, start: Start, undisturbed: dict[int, float]
) -> None:
    # Ray Data keeps actors of its own on a cluster, from the first run to the last.
    before = at_work(nodes).keys()
    run = start("run")
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted() as signs:
        run.kill()
    deadline = time.monotonic() + 60
    while left := {pid: title for pid, title in at_work(nodes).items() if pid not in before}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert not any(is_same(sign.pid, sign.created) for sign in signs)
    again = start("run")
    assert again.end() == {"data": "skipped", "train": "done"}
    assert again.losses() == undisturbed


def test_a_killed_controller_keeps_no_place_from_the_next_one(
    nodes: Nodes, start: Start, undisturbed: dict[int, float]
) -> None:
    run = start("run")
    run.until(lambda: run.has(step=10, ranks=2))
    with run.halted():
        (controller,) = [p for p, title in at_work(nodes).items() if "TrainController" in title]
        os.kill(controller, signal.SIGKILL)
    assert run.end() == {"data": "skipped", "train": "done"}
    assert run.losses() == undisturbed
