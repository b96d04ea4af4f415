"""Two ranks, one or both killed at every point where either touches the disk in a save: the run
goes on, and ends with the losses and the model of one that was left alone, bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.forks import STEPS, Forks, Outcome
from tests.train.test_boundaries import AFTER, BEFORE, losses, model, place
from tests.train.test_worker import dataset

pytestmark = pytest.mark.timeout(1800)
DRAFT = f".draft-{AFTER:08d}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("forks") / "data", "chat")


class Pair:
    """Trainings of one precision and stage on two ranks, beside one that was left alone."""

    def __init__(self, forks: Forks, data: Path, work: Path, precision: str, zero: int) -> None:
        self._forks, self._data = forks, data
        self._options = {"ranks": 2, "precision": precision, "zero": zero}
        whole = self._train(work)
        assert (whole.codes, whole.began) == ([0, 0], 0)
        self.traces = whole.traces
        self._losses, self._model = losses(work), model(work)

    def _train(self, work: Path, **more: object) -> Outcome:
        return self._forks.train(self._data, work, **self._options, **more)

    def killed(self, work: Path, rank: int, at: int, kill: str) -> None:
        """Kill before event `at` of a rank's share of a save, go on, and compare."""
        said = f"{kill} killed before rank {rank}'s {self.traces[rank][at]!r}"
        found = self._train(work, kill_rank=rank, kill_at=at, kill=kill)
        # The other one notices, and does not wait.
        left = -9 if kill == "all" else 1
        assert found.codes == [-9 if each == rank else left for each in (0, 1)], said
        again = self._train(work)
        # The second rank is past the last barrier only when the first has named the checkpoint.
        named = self.traces[0].index(f"rename {DRAFT}") if rank == 0 else len(self.traces[1]) - 2
        assert (again.codes, again.began) == ([0, 0], AFTER if at > named else BEFORE), said
        assert losses(work) == self._losses, said
        assert model(work) == self._model, said
        assert os.listdir(work / "checkpoints") == [f"step-{STEPS:08d}"], said
        shutil.rmtree(work)


@pytest.fixture(scope="module")
def pair(
    forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Pair]:
    known: dict[tuple[str, int], Pair] = {}

    def of(precision: str, zero: int) -> Pair:
        if (precision, zero) not in known:
            work = tmp_path_factory.mktemp("whole") / "work"
            known[precision, zero] = Pair(forks, data, work, precision, zero)
        return known[precision, zero]

    return of


@pytest.mark.parametrize(
    ("rank", "event", "kill"),
    [
        (0, f"rename {DRAFT}/.manifest.json", "one"),
        (1, f"half {DRAFT}/state/zero_pp_rank_1", "all"),
    ],
)
def test_killed_at_a_boundary_of_a_save(
    pair: Callable[[str, int], Pair], tmp_path: Path, rank: int, event: str, kill: str
) -> None:
    two = pair("fp32", 2)
    two.killed(tmp_path / "work", rank, place(two.traces[rank], event), kill)


@pytest.mark.faults
@pytest.mark.parametrize("kill", ["one", "all"])
@pytest.mark.parametrize(("precision", "zero"), [("fp32", 2), ("fp32", 0), ("bf16", 3)])
def test_killed_at_every_boundary_of_a_save(
    pair: Callable[[str, int], Pair], tmp_path: Path, precision: str, zero: int, kill: str
) -> None:
    two = pair(precision, zero)
    # All in one of them; an offset of its own in each of the others.
    step = 1 if (precision, zero) == ("fp32", 2) else 4
    for rank, trace in enumerate(two.traces):
        for at in range(zero % step, len(trace), step):
            two.killed(tmp_path / f"work-{rank}-{at}", rank, at, kill)


def test_each_rank_writes_its_share_and_all_is_on_the_disk_before_it_counts(
    pair: Callable[[str, int], Pair],
) -> None:
    first, second = pair("fp32", 2).traces
    written = [
        {event.removeprefix(f"half {DRAFT}/state/") for event in trace if event.startswith("half")}
        for trace in (first, second)
    ]
    optimizer = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    assert written == [
        {"mp_rank_00_model_states.pt", optimizer.format(0), "rng-0.npy"},
        {optimizer.format(1), "rng-1.npy"},
    ]
    before = first[: place(first, f"rename {DRAFT}/.manifest.json")]
    synced = {event.removeprefix(f"fsync {DRAFT}/state/") for event in before}
    assert written[0] | written[1] <= synced
    assert not any(event.startswith(("fsync", "rename", "unlink")) for event in second)
