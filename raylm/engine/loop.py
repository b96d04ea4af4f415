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

from raylm.engine.answer import Answer
from raylm.engine.protocol import Chunk, Stats
from raylm.engine.runner import Runner
from raylm.errors import RaylmError, RequestError

log = logging.getLogger(__name__)

_MAX_FAILED_STEPS = 3  # in a row; then the engine is taken to be broken
_STALLED_AFTER_S = 60.0  # a single step never takes that long
_JOIN_S = 30.0

Item = Chunk | RaylmError


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """Where the chunks of one request are put: a queue that belongs to an event loop."""

    answer: Answer
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]


class StepLoop:
    """Drives a runner from one thread of its own, which starts at once."""

    def __init__(self, runner: Runner, *, max_batch_size: int, max_waiting: int) -> None:
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
        self._step_began: float | None = None
        self._seconds_per_answer = _Pace()
        self._prompt_tokens = self._generated_tokens = self._steps = self._cancelled = 0
        self._thread = threading.Thread(target=self._run, name="raylm-engine", daemon=True)
        self._thread.start()

    def submit(self, answer: Answer) -> Ticket:
        """Queue an answer; call from the event loop that will read its ticket.

        Raises:
            RequestError: the queue is full (503), or the id is taken.
            RaylmError: the engine has failed or is closed.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket(answer, loop, asyncio.Queue())
        with self._changed:
            self.health()
            if answer.id in self._tickets:
                raise RequestError(
                    f"a request {answer.id!r} is being answered", code="duplicate_id", param="id"
                )
            self._check_room()
            self._tickets[answer.id] = ticket
            self._arrived.append(ticket)
            self._prompt_tokens += len(answer.request.prompt_ids)
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
        began = self._step_began
        if began is not None and time.monotonic() - began > _STALLED_AFTER_S:
            raise RaylmError(
                f"a step of the engine has taken more than {_STALLED_AFTER_S:.0f} s",
                code="engine-stalled",
            )

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
            (t, _copy(fatal) if fatal is not None else t.answer.close("cancelled")) for t in tickets
        )
        self._runner.close()

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
                self._runner.add(ticket.answer)
            self._arrived.clear()
            cancelled = [self._tickets.pop(id) for id in self._to_cancel if id in self._tickets]
            self._to_cancel.clear()
            for ticket in cancelled:
                self._runner.cancel(ticket.answer.id)
            self._cancelled += len(cancelled)
        self._deliver((ticket, ticket.answer.close("cancelled")) for ticket in cancelled)
        return not self._closing

    def _step(self) -> None:
        self._step_began = time.monotonic()
        items: list[tuple[str, Item]]
        try:
            result = self._runner.step(time.time())
        except Exception as error:
            log.exception("a step of the engine failed")
            items = list(self._after_failure(error))
        else:
            self._num_failed_steps = 0
            self._generated_tokens += sum(len(chunk.token_ids) for chunk in result.chunks)
            items = [(chunk.request_id, chunk) for chunk in result.chunks]
            items.extend(result.failed)
        self._step_began = None
        self._steps += 1
        deliveries = []
        with self._changed:
            for request_id, item in items:
                ticket = self._tickets.get(request_id)
                if ticket is None:
                    continue
                deliveries.append((ticket, item))
                if isinstance(item, RaylmError) or item.finish_reason is not None:
                    del self._tickets[request_id]
                    self._seconds_per_answer.note(time.monotonic())
        self._deliver(deliveries)

    def _after_failure(self, error: Exception) -> Iterable[tuple[str, Item]]:
        self._num_failed_steps += 1
        failed = self._runner.abandon()
        if self._num_failed_steps >= _MAX_FAILED_STEPS:
            self._fatal = RaylmError(
                f"{self._num_failed_steps} steps in a row failed, the last with: {error}",
                code="engine-failed",
            )
        for request_id in failed:
            code = error.code if isinstance(error, RaylmError) else "engine-step-failed"
            yield request_id, RaylmError(f"the engine's step failed: {error}", code=code)

    def _deliver(self, deliveries: Iterable[tuple[Ticket, Item]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Item]]] = {}
        for ticket, item in deliveries:
            by_loop.setdefault(ticket.loop, []).append((ticket, item))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, batch)
            except RuntimeError:  # that event loop is closed: nobody listens any more
                for ticket, _ in batch:
                    self.cancel(ticket.answer.id)


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
