import pytest

from raylm.config.train import TrainConfig, WorkerRange
from raylm.errors import HostError
from raylm.progress import Tick, silent
from raylm.train.attempts import Patience, await_workers, is_loss
from raylm.train.placement import Resources

TWO = TrainConfig(workers=2)


def test_patience_is_counted_anew_with_every_step_gained() -> None:
    patience = Patience.of(2)
    assert [patience.allows(step) for step in (3, 3, 5, 5, 5)] == [True, True, True, True, False]


def test_no_patience_is_no_second_attempt() -> None:
    assert not Patience.of(0).allows(7)


def test_room_for_the_least_number_is_waited_for_after_a_loss() -> None:
    looks: list[list[Resources]] = [[{"CPU": 1.0}], [{"CPU": 1.0}, {"CPU": 1.0}]]
    ticks: list[Tick] = []
    assert await_workers(lambda config: looks.pop(0), TWO, 60.0, ticks.append) == 2
    assert [tick.text.partition(";")[0] for tick in ticks] == [
        "2 workers need 2 CPUs, the cluster has 1"
    ]


def test_without_a_loss_too_little_room_is_an_error_at_once() -> None:
    with pytest.raises(HostError) as caught:
        await_workers(lambda config: [{"CPU": 1.0}], TWO, 0.0, silent)
    assert caught.value.code == "cluster-too-small"


def test_an_elastic_run_does_not_wait_for_more_than_its_least() -> None:
    elastic = TrainConfig(workers=WorkerRange(min=1, max=2))
    assert await_workers(lambda config: [{"CPU": 1.0}], elastic, 60.0, silent) == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4242"), True),
        (RuntimeError("shapes do not match"), False),
        (HostError("the disk is full", code="disk-full", hint="make room"), False),
    ],
)
def test_a_loss_is_told_from_a_failure(error: Exception, lost: bool) -> None:
    assert is_loss(error) is lost
    outer = ValueError("a worker failed")
    outer.__cause__ = error
    assert is_loss(outer) is lost
