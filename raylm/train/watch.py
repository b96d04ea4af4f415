"""Watch: the driver's eye on an attempt: progress, hung ranks, room for more workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from raylm.progress import Report, Tick
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, MetricsTail
from raylm.train.orders import Order, give_order
from raylm.train.placement import alive_nodes, room
from raylm.train.signs import Sign, Silence, hung, read_signs

_LOOK_S = 0.5
_ROOM_EVERY_S = 5.0
_ROOM_LOOKS = 3
"""Looks in a row that must find room: a node that comes and goes is not worth a restart."""


class Watch:
    """Follows an attempt in a thread, while `wait` runs it in another."""

    def __init__(self, job: Job, num_workers: int, report: Report) -> None:
        self._job, self._num_workers, self._report = job, num_workers, report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raylm-train-watch", daemon=True)
        self.step = -1
        """The last step that was seen; -1 before the first."""
        self.cause: str | None = None
        """What the watch found wrong itself."""
        self.is_resizing = False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, work: Callable[[], object]) -> None:
        """Call something outside the main thread, and wait for it here.

        Ray Train takes Ctrl-C for itself when it runs in the main thread, and then ends the
        process with exit code 1; signals stay ours this way. The first signal asks for a last
        checkpoint, and is passed on when that is written, or the grace is over; a second one is
        passed on at once.
        """
        failure: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name="raylm-train", daemon=True)
        thread.start()
        try:
            _join(thread)
        except (KeyboardInterrupt, SystemExit):
            grace_s = self._job.config.checkpoint.grace_s
            # Without a step there is nothing to save, and it may take a minute to get to one.
            has_begun = any(sign.step >= 0 for sign in read_signs(self._job.work))
            if has_begun and grace_s > 0:
                self._report(Tick("train", "saving a checkpoint; again ends at once"))
                give_order(self._job.work, Order.SAVE_AND_STOP)
                _join(thread, grace_s)
            raise
        if failure:
            raise failure[0]

    def _follow(self) -> None:
        job = self._job
        self._report(Tick("train", f"starting {self._num_workers} workers"))
        tail, silence = MetricsTail(job.work / METRICS), Silence()
        looks, next_room_s = 0, time.monotonic() + _ROOM_EVERY_S
        while not self._stop.wait(_LOOK_S):
            steps = [line for line in tail.new() if "loss" in line]
            if steps:
                self._report(_tick(steps[-1], job.config.time_s))
            now = time.monotonic()
            signs = read_signs(job.work)
            self.step = max([self.step, *(sign.step for sign in signs)])
            if job.config.hang_s and self.cause is None:
                self._end_hung(signs, silence, now)
            if now >= next_room_s and self.step >= 0 and not self.is_resizing:
                next_room_s = now + _ROOM_EVERY_S
                looks = looks + 1 if self._could_grow() else 0
                if looks >= _ROOM_LOOKS:
                    self.is_resizing = True
                    give_order(job.work, Order.SAVE_AND_STOP)

    def _could_grow(self) -> bool:
        config = self._job.config
        most = min(config.max_workers, config.global_batch)
        return most > self._num_workers and room(alive_nodes(), config) > self._num_workers

    def _end_hung(self, signs: list[Sign], silence: Silence, now_s: float) -> None:
        silent_s = silence.look(signs, now_s)
        late = hung(signs, silent_s, self._job.config.hang_s)
        if not late:
            return
        sign = late[0]
        self.cause = (
            f"{sign.name} gave no sign of life for {silent_s[sign.rank]:.0f} s after step "
            f"{sign.step}, and was ended"
        )
        for one in late:
            try:
                _end(one)
            except Exception as error:  # its node may be gone with it
                self._report(Tick("train", f"{one.name} cannot be ended: {error}"))


def _join(thread: threading.Thread, limit_s: float | None = None) -> None:
    deadline = None if limit_s is None else time.monotonic() + limit_s
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        thread.join(0.2)


def _end(sign: Sign) -> None:
    """Kill a rank's process on its node: it may be stopped, so nothing gentler would do."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(sign.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(kill_same)
    ray.get(task.remote(sign.pid, sign.created), timeout=30)


def kill_same(pid: int, created: float) -> None:
    """SIGKILL for a process, unless its number belongs to another one by now."""
    try:
        if abs(psutil.Process(pid).create_time() - created) < 1:
            os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


def _tick(line: dict[str, Any], time_s: float | None) -> Tick:
    text = f"loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s"
    if line["horizon"] is None:
        return Tick("train", text, line["elapsed_s"], time_s, "s")
    return Tick("train", text, line["step"], line["horizon"], "steps")
