"""Level: one level of load while it runs, as an open or a closed loop.

The load is kept up from its first request until the last measured one has ended: requests before
the measured ones warm the server up, those after them keep it busy. So nothing that is measured
ran beside a load that was still to come or that had gone already.

In an open loop requests are due when the arrivals say, whatever became of those before; in a
closed loop each of a number of clients sends its next one when it has its answer. An answer's
time counts from when its request was due, not from when it was sent (coordinated omission,
G. Tene).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from raylm.bench.client import clock
from raylm.bench.record import CUT, Draft, Phase, Record

Ask = Callable[[bytes, Draft], Awaitable[None]]
Bodies = Callable[[int], bytes]
"""The body of the request with this index; made before the request is due."""
PAUSE_AFTER_FAILURE_S = 0.05
"""Of a client in a closed loop: a server that refuses at once is not to be hammered."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Which requests are measured: so many, or those due in so many seconds, after the first."""

    warmup: int
    requests: int | None
    duration_s: float | None

    def phase(self, index: int, at_s: float, measured_since_s: float | None) -> Phase:
        """What the request with this index, due at this time, is for."""
        if index < self.warmup:
            return "warm-up"
        if self.requests is not None:
            return "measured" if index < self.warmup + self.requests else "cool-down"
        assert self.duration_s is not None
        since_s = at_s if measured_since_s is None else measured_since_s
        return "measured" if at_s - since_s < self.duration_s else "cool-down"


class Level:
    """Requests on their way, and records of those that ended. For one event loop, and one run."""

    def __init__(
        self,
        ask: Ask,
        bodies: Bodies,
        quota: Quota,
        *,
        max_in_flight: int,
        max_requests: int,
        on_record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.records: list[Record] = []
        self.cut: str | None = None
        """Why it ended before its time."""
        self.num_waited = 0
        """Requests that were due when `max_in_flight` were on their way."""
        self.busy_share = 0.0
        """The share of the time in which this thread had work to do."""
        self._ask, self._bodies, self._quota = ask, bodies, quota
        self._slots = asyncio.Semaphore(max_in_flight)
        self._max_requests = max_requests
        self._on_record = on_record
        self._tasks: set[asyncio.Task[Record]] = set()
        self._defect: BaseException | None = None
        self._ended = asyncio.Event()
        self._num_begun = self._num_measured = self._num_measured_ended = 0
        self._measured_since_s: float | None = None
        self._is_time_up = False
        self._begun_s = 0.0

    async def open_loop(self, arrivals: Iterable[float]) -> None:
        """Send requests at these times (seconds), until the measured ones have ended."""
        await self._run([self._send_at(arrivals)])

    async def closed_loop(self, clients: int) -> None:
        """Send requests from so many clients, until the measured ones have ended."""
        await self._run([self._send_in_turn() for _ in range(clients)])

    def stop(self, why: str) -> None:
        """End now; what is on its way is cut."""
        self.cut = self.cut or why
        self._ended.set()

    async def _run(self, senders: list[Coroutine[None, None, None]]) -> None:
        self._begun_s, busy_s = clock(), time.thread_time()
        tasks = [asyncio.create_task(sender) for sender in senders]
        ended = asyncio.create_task(self._ended.wait())
        try:
            # A sender that fails is an error of ours; one that is through waits for its answers.
            while not ended.done():
                running = [task for task in tasks if not task.done()]
                await asyncio.wait([ended, *running], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            took_s = clock() - self._begun_s
            self.busy_share = (time.thread_time() - busy_s) / took_s
            every: list[asyncio.Task[Any]] = [ended, *tasks, *self._tasks]
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)
        if self._defect is not None:
            raise self._defect

    async def _send_at(self, arrivals: Iterable[float]) -> None:
        for index, at_s in enumerate(arrivals):
            body = self._bodies(index)
            # Sleeping for no time still lets answers be read.
            await asyncio.sleep(max(0.0, self._begun_s + at_s - clock()))
            if not self._has_room():
                return
            task = asyncio.create_task(self._send(self._draft(at_s), body))
            self._tasks.add(task)
            task.add_done_callback(self._settle)

    async def _send_in_turn(self) -> None:
        while self._has_room():
            body = self._bodies(self._num_begun)
            record = await self._send(self._draft(clock() - self._begun_s), body)
            if not record.is_ok:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    def _settle(self, task: asyncio.Task[Record]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = error
            self._ended.set()

    def _has_room(self) -> bool:
        if self._num_begun >= self._max_requests:
            self.stop("--max-requests")
        return not self._ended.is_set()

    def _draft(self, at_s: float) -> Draft:
        phase = self._quota.phase(self._num_begun, at_s, self._measured_since_s)
        draft = Draft(self._num_begun, phase, at_s, self._begun_s)
        self._num_begun += 1
        if phase == "measured":
            self._num_measured += 1
            if self._measured_since_s is None:
                self._measured_since_s = at_s
                if self._quota.duration_s is not None:
                    left_s = at_s + self._quota.duration_s - (clock() - self._begun_s)
                    asyncio.get_running_loop().call_later(left_s, self._time_is_up)
        return draft

    async def _send(self, draft: Draft, body: bytes) -> Record:
        try:
            self.num_waited += self._slots.locked()
            async with self._slots:
                await self._ask(body, draft)
        except asyncio.CancelledError:
            draft.fail(CUT)
            raise
        finally:
            record = draft.finished(clock())
            self.records.append(record)
            self._num_measured_ended += draft.phase == "measured"
            self._on_record(record)
            self._end_if_all()
        return record

    def _time_is_up(self) -> None:
        self._is_time_up = True
        self._end_if_all()

    def _end_if_all(self) -> None:
        is_all = self._is_time_up or self._num_measured == self._quota.requests
        if is_all and self._num_measured_ended == self._num_measured:
            self._ended.set()
