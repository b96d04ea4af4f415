"""Watch: the driver's eye on an attempt: progress, hung ranks, nodes that come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from raylm.progress import Report, Tick
from raylm.train.aside import Aside, nodes_for_workers
from raylm.train.ending import end_rank
from raylm.train.hung import (
    Unchanged,
    WatchedTime,
    silent,
    stalled,
    why_silent,
    why_stalled,
)
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, MetricsTail
from raylm.train.notices import NoticesTail
from raylm.train.orders import Order, give_order
from raylm.train.placement import draining_nodes, room
from raylm.train.signs import Sign, read_signs

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
        self._tail = MetricsTail(job.work / METRICS)
        self._aside: Aside | None = None
        self._watched = WatchedTime()
        self._beats = Unchanged(lambda sign: sign.beats)
        self._moves = Unchanged(lambda sign: sign.moves)
        self._signs: list[Sign] = []
        self._next_nodes_s = time.monotonic() + _NODES_EVERY_S
        self._room_looks = 0
        self._has_ended_one = False
        self._failed: set[tuple[str, type[Exception]]] = set()
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
        self._look_at_notices()

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
        text = f"starting {self._num_workers} worker{'s' * (self._num_workers > 1)}"
        text = "starting here" if self._job.config.is_alone else text
        self._report(Tick("train", text, is_notice=True))
        looks = (
            self._look_at_notices, self._look_at_progress, self._look_aside, self._look_at_ranks,
            self._look_at_nodes,
        )  # fmt: skip
        while not self._stop.wait(_LOOK_S):
            for look in looks:
                self._try(look)
        self._try(self._close_aside)

    def _try(self, look: Callable[[], None]) -> None:
        """Whoever looks has other things to watch over: what fails is told once."""
        try:
            look()
        except Exception as error:
            what = look.__name__.removeprefix("_").replace("_", " ")
            if (what, type(error)) in self._failed:
                return
            self._failed.add((what, type(error)))
            text = f"cannot {what}, and tries again: {type(error).__name__}: {error}"
            with suppress(Exception):
                self._report(Tick("train", text, is_notice=True))

    def _look_at_notices(self) -> None:
        for text in self._notices.new():
            self._report(Tick("train", text, is_notice=True))

    def _look_at_progress(self) -> None:
        steps = [line for line in self._tail.new() if "loss" in line]
        if steps:
            self._report(_tick(steps[-1], self._job.config.time_s))

    def _look_aside(self) -> None:
        if self._job.config.validate_aside is None:
            return
        if self._aside is None:
            self._aside = Aside(self._job, self._report)
        self._aside.look()

    def _close_aside(self) -> None:
        if self._aside is not None:
            self._aside.close()

    def _look_at_ranks(self) -> None:
        now_s = self._watched.look(time.monotonic())
        signs = self._signs = read_signs(self._job.work)
        self.step = max([self.step, *(sign.step for sign in signs)])
        limit_s = self._job.config.hang_s
        silent_s, still_s = self._beats.look(signs, now_s), self._moves.look(signs, now_s)
        if not limit_s or self._has_ended_one:
            return
        if late := silent(signs, silent_s, limit_s):
            self.cause = why_silent(late, silent_s)
        elif late := stalled(signs, still_s, limit_s, self._num_workers):
            self.cause = why_stalled(late, still_s, len(signs))
        for one in late:
            try:
                end_rank(one)
                self._has_ended_one = True
            except Exception as error:  # its node may be gone with it
                self._report(Tick("train", f"{one.name} cannot be ended: {error}"))

    def _look_at_nodes(self) -> None:
        may_restart = self.step >= 0 and self.restart is None and not self._job.config.is_alone
        now_s = time.monotonic()
        if not may_restart or now_s < self._next_nodes_s:
            return
        self._next_nodes_s = now_s + _NODES_EVERY_S
        # First: room may not be known (`nodes_for_workers`), and a node that goes does not wait.
        self._restart(leaving(self._signs, draining_nodes(), time.time()))
        if self.restart is None:
            self._room_looks = self._room_looks + 1 if self._could_grow() else 0
            if self._room_looks >= _ROOM_LOOKS:
                self._restart("the cluster has grown")

    def _restart(self, why: str | None) -> None:
        self.restart = why
        if why is not None:
            give_order(self._job.work, Order.SAVE_AND_STOP)

    def _could_grow(self) -> bool:
        config = self._job.config
        most = min(config.max_workers, config.global_batch)
        return (
            most > self._num_workers and room(nodes_for_workers(config), config) > self._num_workers
        )


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


def _tick(line: dict[str, Any], time_s: float | None) -> Tick:
    # A run that began with an older raylm has lines without them.
    rate, mfu = line.get("recent_tokens_per_s") or line["tokens_per_s"], line.get("mfu")
    left_s = line.get("left_s")
    used = "unknown" if mfu is None else f"{mfu:.0%}"
    text = f"loss {line['loss']:.3f}, {rate:,.0f} tokens/s, MFU {used}"
    if line["horizon"] is None:
        return Tick("train", text, line["elapsed_s"], time_s, "s", left_s=left_s)
    return Tick("train", text, line["step"], line["horizon"], "steps", left_s=left_s)
