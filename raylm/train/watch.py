"""Watch: the driver's eye on an attempt: progress, hung ranks, nodes that come and go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from raylm.processes import is_same
from raylm.progress import Report, Tick
from raylm.train.aside import Aside, nodes_for_workers
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, MetricsTail
from raylm.train.notices import NoticesTail
from raylm.train.orders import Order, give_order
from raylm.train.placement import draining_nodes, room
from raylm.train.signs import Sign, Silence, hung, read_signs

_LOOK_S = 0.5
_NODES_EVERY_S = 5.0
_ROOM_LOOKS = 3
"""Looks in a row that must find room: a node that comes and goes is not worth a restart."""


class Watch:
    """Follows an attempt in a thread, while `wait` runs it in another."""

    def __init__(self, job: Job, num_workers: int, report: Report) -> None:
        self._job, self._num_workers, self._report = job, num_workers, report
        self._notices = NoticesTail(job.work)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raylm-train-watch", daemon=True)
        self.step = -1
        """The last step that was seen; -1 before the first."""
        self.cause: str | None = None
        """What the watch found wrong itself."""
        self.restart: str | None = None
        """Why the watch had the workers save and stop, to go on at once on other nodes."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def wait(self, work: Callable[[], object]) -> None:
        """Call something outside the main thread, and wait for it here.

        Ray Train takes Ctrl-C for itself when it runs in the main thread, and then ends the
        process with exit code 1; signals stay ours this way. The first signal asks for a last
        checkpoint, and is passed on when that is written, or the grace is over; a second one is
        passed on at once.
        """
        failure: list[BaseException] = []
        # Not `join`: Python 3.11 takes a thread for ended when a signal interrupts that.
        ended = threading.Event()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failure.append(error)
            finally:
                ended.set()

        threading.Thread(target=run, name="raylm-train", daemon=True).start()
        try:
            ended.wait()
        except (KeyboardInterrupt, SystemExit):
            if ask_to_save(self._job, self._report):
                ended.wait(self._job.config.checkpoint.grace_s)
            raise
        if failure:
            raise failure[0]

    def _follow(self) -> None:
        job = self._job
        text = f"starting {self._num_workers} worker{'s' * (self._num_workers > 1)}"
        text = "starting here" if job.config.is_alone else text
        self._report(Tick("train", text, is_notice=True))
        tail, silence = MetricsTail(job.work / METRICS), Silence()
        aside = Aside(job, self._report) if job.config.validate_aside else None
        looks, next_nodes_s = 0, time.monotonic() + _NODES_EVERY_S
        while not self._stop.wait(_LOOK_S):
            self._tell()
            steps = [line for line in tail.new() if "loss" in line]
            if steps:
                self._report(_tick(steps[-1], job.config.time_s))
            if aside is not None:
                aside.look()
            now = time.monotonic()
            signs = read_signs(job.work)
            self.step = max([self.step, *(sign.step for sign in signs)])
            if job.config.hang_s and self.cause is None:
                self._end_hung(signs, silence, now)
            may_restart = self.step >= 0 and self.restart is None and not job.config.is_alone
            if may_restart and now >= next_nodes_s:
                next_nodes_s = now + _NODES_EVERY_S
                looks = looks + 1 if self._could_grow() else 0
                self.restart = leaving(signs, draining_nodes(), time.time()) or (
                    "the cluster has grown" if looks >= _ROOM_LOOKS else None
                )
                if self.restart:
                    give_order(job.work, Order.SAVE_AND_STOP)
        if aside is not None:
            aside.close()

    def _tell(self) -> None:
        for text in self._notices.new():
            self._report(Tick("train", text, is_notice=True))

    def _could_grow(self) -> bool:
        config = self._job.config
        most = min(config.max_workers, config.global_batch)
        return (
            most > self._num_workers and room(nodes_for_workers(config), config) > self._num_workers
        )

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


def ask_to_save(job: Job, report: Report) -> bool:
    """Ask for a last checkpoint, if there is a step to save and grace to save it in."""
    # Without a step there is nothing to save, and it may take a minute to get to one.
    has_begun = any(sign.step >= 0 for sign in read_signs(job.work))
    if not has_begun or not job.config.checkpoint.grace_s:
        return False
    report(Tick("train", "saving a checkpoint; again ends at once"))
    give_order(job.work, Order.SAVE_AND_STOP)
    return True


def leaving(signs: list[Sign], draining: Mapping[str, float], now: float) -> str | None:
    """Which of the ranks' nodes are told to go, in words; None if none is.

    Args:
        signs: of all ranks.
        draining: Ray's node ids, and the Unix times when they must be gone; 0 is none.
        now: Unix time.
    """
    going = [sign for sign in signs if sign.node_id in draining]
    if not going:
        return None
    hosts = ", ".join(dict.fromkeys(sign.host for sign in going))
    deadlines = [draining[sign.node_id] for sign in going if draining[sign.node_id]]
    within = f" within {max(0.0, min(deadlines) - now):.0f} s" if deadlines else ""
    ranks = ", ".join(str(sign.rank) for sign in going)
    return f"{hosts} (rank {ranks}) has to go{within}"


def _end(sign: Sign) -> None:
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


def _tick(line: dict[str, Any], time_s: float | None) -> Tick:
    # A run that began with an older raylm has lines without them.
    rate, mfu = line.get("recent_tokens_per_s") or line["tokens_per_s"], line.get("mfu")
    left_s = line.get("left_s")
    used = "unknown" if mfu is None else f"{mfu:.0%}"
    text = f"loss {line['loss']:.3f}, {rate:,.0f} tokens/s, MFU {used}"
    if line["horizon"] is None:
        return Tick("train", text, line["elapsed_s"], time_s, "s", left_s=left_s)
    return Tick("train", text, line["step"], line["horizon"], "steps", left_s=left_s)
