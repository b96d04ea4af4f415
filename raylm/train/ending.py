"""The end of a rank's process, by the driver, on whatever node it is."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from raylm.processes import is_same
from raylm.train.signs import Sign


def end_rank(sign: Sign) -> None:
    """Kill a rank's process on its node: it may be stopped, so nothing gentler would do."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(sign.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(kill_same)
    ray.get(task.remote(sign.pid, sign.created), timeout=30)


def kill_same(pid: int, created: float) -> None:
    """SIGKILL for a process, unless its number belongs to another one by now."""
    if is_same(pid, created):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
