import errno
import logging
from collections.abc import Iterator

import pyarrow as pa
import pytest

from raylm.data.passes import run_pass, wait_for_cpus
from raylm.errors import DataError, HostError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
GROUPS = [pa.table({"n": [n, n + 1]}) for n in range(0, 20, 2)]


def repeat(group: pa.Table, *, times: int) -> Iterator[pa.Table]:
    for _ in range(times):
        yield group


def fail(group: pa.Table, *, error: Exception) -> Iterator[pa.Table]:
    raise error
    yield


def test_tables_come_in_the_order_of_their_groups() -> None:
    tables = list(run_pass(GROUPS, repeat, {"times": 2}, 0.5))
    numbers = [n for table in tables for n in table["n"].to_pylist()]
    assert numbers == [n for start in range(0, 20, 2) for n in (start, start + 1) * 2]


@pytest.mark.parametrize(
    "error",
    [
        DataError("the corpus is odd", code="data-odd", hint="look at it"),
        HostError("not here", code="data-not-shared"),
    ],
)
def test_an_error_of_raylm_arrives_as_it_was_raised(error: DataError | HostError) -> None:
    with pytest.raises(type(error)) as caught:
        list(run_pass(GROUPS[:1], fail, {"error": error}, 1))
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


def test_an_error_of_the_system_keeps_its_number() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as caught:
        list(run_pass(GROUPS[:1], fail, {"error": full}, 1))
    assert caught.value.errno == errno.ENOSPC
    assert type(caught.value) is OSError


def test_any_other_error_is_one_line() -> None:
    with pytest.raises(HostError) as caught:
        list(run_pass(GROUPS[:1], fail, {"error": KeyError("surprise")}, 1))
    assert caught.value.code == "data-task-failed"
    assert caught.value.message == "a data task failed: KeyError: surprise"


def test_the_console_stays_quiet_and_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    list(run_pass(GROUPS[:1], repeat, {"times": 1}, 1))
    assert "Dataset" not in "".join(capfd.readouterr())
    levels = {type(h).__name__: h.level for h in logging.getLogger("ray.data").handlers}
    assert levels["PlainRayHandler"] < logging.CRITICAL


def test_a_task_that_no_node_can_hold_fails_instead_of_waiting() -> None:
    with pytest.raises(HostError, match=r"data.num_cpus=512, but the largest node") as caught:
        wait_for_cpus(512)
    assert caught.value.code == "data-no-cpus"


def test_held_cpus_are_waited_for_and_then_named() -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> bool:
            return True

    wait_for_cpus(2)
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    with pytest.raises(HostError, match="0 CPUs free, a data task needs 1"):
        wait_for_cpus(1, timeout_s=2)
    ray.kill(holder)
    wait_for_cpus(1)
