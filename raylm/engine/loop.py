"""The thread that steps an engine, and the bridge from it to asyncio.

Requests come in through a bounded queue under a lock; chunks go out to each request's event
loop, all those of one step in one call. Nothing here knows of models or tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from raylm.engine.encode import Encoded
from raylm.engine.job import Job
from raylm.engine.protocol import Chunk, Stats
from raylm.engine.runner import Runner, step_error
from raylm.engine.watchdog import Watchdog
from raylm.errors import RaylmError, RequestError

log = logging.getLogger(__name__)

_MAX_FAILED_STEPS = 3  # without a result in between; then the engine is taken to be broken
_JOIN_S = 30.0

Item = Chunk | Encoded | RaylmError


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """Where the results of one request are put: a queue that belongs to an event loop."""

    job: Job
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]


class StepLoop:
    """Drives a runner from one thread of its own, which starts at once."""

    def __init__(
        self, runner: Runner, *, max_batch_size: int, max_waiting: int, step_timeout_s: float
    ) -> None:
        self._runner = runner
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        # Guarded by the condition: what the thread takes in before its next step.
        self._arrived: list[Ticket] = []
        self._to_cancel: list[str] = []
        self._tickets: dict[str, Ticket] = {}
        self._closing = False
        self._fatal: RaylmError | None = None
        self._num_failed_steps = 0
        self._watchdog = Watchdog(step_timeout_s, self._give_up)
        self._seconds_per_answer = _Pace()
        self._prompt_tokens = self._generated_tokens = self._steps = self._cancelled = 0
        self._thread = threading.Thread(target=self._run, name="raylm-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """Queue a job; call from the event loop that will read its ticket.

        Raises:
            RequestError: the queue is full (503), or the id is taken.
            RaylmError: the engine has failed or is closed.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket(job, loop, asyncio.Queue())
        with self._changed:
            self.health()
            if job.id in self._tickets:
                raise RequestError(
                    f"a request {job.id!r} is being answered", code="duplicate_id", param="id"
                )
            self._check_room()
            self._tickets[job.id] = ticket
            self._arrived.append(ticket)
            self._prompt_tokens += len(job.request.prompt_ids)
            self._changed.notify()
        return ticket

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; unknown ids are ignored."""
        with self._changed:
            if request_id in self._tickets:
                self._to_cancel.append(request_id)
                self._changed.notify()

    def stats(self) -> Stats:
        """Counters and gauges."""
        runner = self._runner
        return Stats(
            num_running=runner.num_running,
            num_waiting=runner.num_waiting + len(self._arrived),
            num_blocks=runner.num_blocks,
            num_free_blocks=runner.num_free_blocks,
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._generated_tokens,
            steps_total=self._steps,
            cancelled_total=self._cancelled,
            prefix_query_tokens_total=runner.num_queried_tokens,
            prefix_hit_tokens_total=runner.num_found_tokens,
            guessed_tokens_total=runner.num_guessed_tokens,
            confirmed_tokens_total=runner.num_confirmed_tokens,
        )

    def health(self) -> None:
        """Return if the thread works.

        Raises:
            RaylmError: it failed for good, hangs in a step, or was closed.
        """
        if self._fatal is not None:
            raise _copy(self._fatal)
        if self._closing:
            raise RaylmError("the engine is closed", code="engine-closed")
        self._watchdog.check()

    def close(self) -> None:
        """Stop the thread and free the model; what is running ends as cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_JOIN_S)

    def _check_room(self) -> None:
        num_waiting = self._runner.num_waiting + len(self._arrived)
        open_places = max(0, self._max_batch_size - self._runner.num_running)
        if num_waiting < self._max_waiting + open_places:
            return
        # Until about half of those who wait have been served.
        wait_s = min(60.0, max(1.0, self._seconds_per_answer.mean * num_waiting / 2))
        raise RequestError(
            f"{num_waiting} requests are waiting, and no more than {self._max_waiting} may",
            code="overloaded",
            status=503,
            retry_after_s=round(wait_s, 1),
        )

    def _give_up(self, stall: RaylmError) -> None:
        """End the requests behind a step that hangs, so that they can be answered elsewhere."""
        with self._changed:
            tickets = list(self._tickets.values())
            # Should the step come to its end after all, nobody waits for them any more.
            self._to_cancel.extend(self._tickets)
        log.error("%s; %d requests end", stall.message, len(tickets))
        self._deliver((ticket, _copy(stall)) for ticket in tickets)

    def _run(self) -> None:
        try:
            while self._take_in():
                if self._runner.num_running or self._runner.num_waiting:
                    self._step()
                if self._fatal is not None:
                    break
        except BaseException as error:  # the thread must never die in silence
            log.exception("the engine's thread failed")
            self._fatal = RaylmError(f"the engine failed: {error}", code="engine-failed")
        with self._changed:
            tickets = list(self._tickets.values())
            self._tickets.clear()
            self._arrived.clear()
            fatal = self._fatal
        self._deliver(
            (t, _copy(fatal) if fatal is not None else t.job.close("cancelled")) for t in tickets
        )
        self._runner.close()
        self._watchdog.stop()

    def _take_in(self) -> bool:
        """Wait for work, queue what arrived, cancel what was cancelled; False is the end."""
        with self._changed:
            while not (
                self._arrived
                or self._to_cancel
                or self._closing
                or self._runner.num_running
                or self._runner.num_waiting
            ):
                self._changed.wait()
            for ticket in self._arrived:
                self._runner.add(ticket.job)
            self._arrived.clear()
            cancelled = [self._tickets.pop(id) for id in self._to_cancel if id in self._tickets]
            self._to_cancel.clear()
            for ticket in cancelled:
                self._runner.cancel(ticket.job.id)
            self._cancelled += len(cancelled)
        self._deliver((ticket, ticket.job.close("cancelled")) for ticket in cancelled)
        return not self._closing

    def _step(self) -> None:
        self._watchdog.begin()
        items: list[tuple[str, Item]]
        try:
            result = self._runner.step(time.time())
        except Exception as error:
            log.exception("a step of the engine failed")
            items = list(self._after_failure(error))
        else:
            broken = [e for _, e in result.failed if not isinstance(e, RequestError)]
            if result.chunks or result.encoded:
                self._num_failed_steps = 0
            elif broken:
                self._note_failure(broken[0])
            self._generated_tokens += sum(len(chunk.token_ids) for chunk in result.chunks)
            items = [(chunk.request_id, chunk) for chunk in result.chunks]
            items.extend((encoded.request_id, encoded) for encoded in result.encoded)
            items.extend(result.failed)
        self._watchdog.end()
        self._steps += 1
        deliveries = []
        with self._changed:
            for request_id, item in items:
                ticket = self._tickets.get(request_id)
                if ticket is None:
                    continue
                deliveries.append((ticket, item))
                if not isinstance(item, Chunk) or item.finish_reason is not None:
                    del self._tickets[request_id]
                    self._seconds_per_answer.note(time.monotonic())
        self._deliver(deliveries)

    def _after_failure(self, error: Exception) -> Iterable[tuple[str, Item]]:
        failed = self._runner.abandon()
        if failed is None:
            return
        self._note_failure(error)
        for request_id in failed:
            yield request_id, step_error(error)

    def _note_failure(self, error: Exception) -> None:
        self._num_failed_steps += 1
        if isinstance(error, RaylmError) and error.code == "engine-failed":
            self._fatal = _copy(error)  # the runner knows that no step will ever succeed
        elif self._num_failed_steps >= _MAX_FAILED_STEPS:
            self._fatal = RaylmError(
                f"{self._num_failed_steps} steps in a row failed, the last with: {error}",
                code="engine-failed",
            )

    def _deliver(self, deliveries: Iterable[tuple[Ticket, Item]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Item]]] = {}
        for ticket, item in deliveries:
            by_loop.setdefault(ticket.loop, []).append((ticket, item))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, batch)
            except RuntimeError:  # that event loop is closed: nobody listens any more
                for ticket, _ in batch:
                    self.cancel(ticket.job.id)


class _Pace:
    """Smoothed seconds between ends of answers."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._last: float | None = None

    def note(self, now_s: float) -> None:
        if self._last is not None:
            self.mean += 0.1 * (now_s - self._last - self.mean)
        self._last = now_s


def _put(batch: list[tuple[Ticket, Item]]) -> None:
    for ticket, item in batch:
        ticket.queue.put_nowait(item)


def _copy(error: RaylmError) -> RaylmError:
    # An exception keeps its traceback: each request raises one of its own.
    return RaylmError(error.message, code=error.code, hint=error.hint)
