"""One pass over the corpus with Ray Data: a function over groups of parts, in order.

The corpus is read anew in each pass instead of being kept in the object store: cleaning
costs a few per cent of tokenising, and so memory does not grow with the corpus.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from raylm.errors import HostError, RaylmError

_WAIT_S = 30.0
Task = Callable[..., Iterator[pa.Table]]


def run_pass(
    groups: list[pa.Table], task: Task, arguments: dict[str, Any], num_cpus: float
) -> Iterator[pa.Table]:
    """Call `task(group, **arguments)` for each group in parallel; its tables in group order.

    Raises:
        RaylmError: raised by the task, as it was raised there.
        HostError: a worker died and could not be replaced.
    """
    import ray.data
    from ray.exceptions import RayError

    with _quiet():
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        try:
            with ray.data.DataContext.current(context):
                tables = (
                    ray.data.from_arrow(groups)
                    .map_batches(
                        task,
                        batch_size=None,
                        batch_format="pyarrow",
                        fn_kwargs=arguments,
                        num_cpus=num_cpus,
                    )
                    .iter_batches(batch_size=None, batch_format="pyarrow")
                )
                yield from tables
        except (RayError, OSError) as error:
            raise unwrap(error) from error


def warm_up(num_tasks: int, num_cpus: float) -> None:
    """Let as many workers as a pass will use import its modules, while the caller does.

    Importing Ray Data takes seconds of CPU in each process; this way they run side by side.
    """
    import ray

    def imports() -> None:
        import ray.data

        import raylm.data.encode

        assert ray.data and raylm.data.encode

    task = ray.remote(num_cpus=num_cpus, max_retries=0)(imports)
    for _ in range(min(num_tasks, num_slots(num_cpus))):
        task.remote()


def num_slots(num_cpus: float) -> int:
    """How many tasks of `num_cpus` the cluster runs at once, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0.0) / num_cpus))


def unwrap(error: BaseException) -> BaseException:
    """The error of raylm or of the system inside one of Ray's, or a HostError about it."""
    from ray.exceptions import OutOfMemoryError, RayError

    innermost = error
    for found in _causes(error):
        # Ray's wrapper of an error is of that error's class too: it is not what we look for.
        if isinstance(found, (RaylmError, OSError)) and not isinstance(found, RayError):
            return found
        if isinstance(found, OutOfMemoryError):
            return HostError(
                "a data task ran out of memory",
                code="data-out-of-memory",
                hint="raise data.num_cpus, so that fewer tasks run at once on a node",
            )
        innermost = found
    # Ray Data appends advice of several lines to the message.
    cause = next((str(a).splitlines()[0] for a in innermost.args if str(a).strip()), "")
    return HostError(
        f"a data task failed: {type(innermost).__name__}: {cause}",
        code="data-task-failed",
        hint="the whole traceback is in Ray's logs (/tmp/ray/session_latest/logs)",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on inwards; each once."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = getattr(found, "cause", None) or found.__cause__


def wait_for_cpus(num_cpus: float, timeout_s: float = _WAIT_S) -> None:
    """Return when a node has `num_cpus` free.

    Raises:
        HostError: no node has so many at all, or none gets them free in time.
    """
    import ray

    nodes = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
    largest = max(nodes, default=0.0)
    if largest < num_cpus:
        raise HostError(
            f"data.num_cpus={num_cpus:g}, but the largest node of the cluster has {largest:g}",
            code="data-no-cpus",
            hint=f"set data.num_cpus to {largest:g} or less" if largest else "add a node with CPUs",
        )
    end = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0.0)) < num_cpus:
        if time.monotonic() > end:
            raise HostError(
                f"the cluster has {free:g} CPUs free, a data task needs {num_cpus:g}",
                code="data-no-cpus",
                hint="end what holds them (`raylm status`, `raylm down`), or set data.num_cpus "
                "to less",
            )
        time.sleep(0.2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's own log off the console; its files keep everything."""
    import ray.data  # installs the handlers

    assert ray.data
    handlers = [
        h for h in logging.getLogger("ray.data").handlers if type(h).__name__ == "PlainRayHandler"
    ]
    levels = [h.level for h in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
