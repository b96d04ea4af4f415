"""Work on one batch: from wherever it is to its end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from raylm.serve.batches.ask import Handler, Retry, ask
from raylm.serve.batches.files import Files, new_file_id, record_of
from raylm.serve.batches.jobs import Job
from raylm.serve.batches.lines import Line, check_input, read_lines
from raylm.serve.batches.results import Results
from raylm.serve.batches.status import Event, State

log = logging.getLogger("raylm.serve")
GROUP_S = 1.0
"""Answers are written and synced in groups so long, and a wish to cancel is seen as soon."""


@dataclass(frozen=True, slots=True)
class Work:
    """What batches are worked on with; one for all of them."""

    handlers: Mapping[str, Handler]
    max_concurrency: int
    """Requests of one batch that are begun."""
    slots: asyncio.Semaphore
    """One for every request at a time; first come, first served, so that batches take turns."""
    retry: Retry
    max_lines: int
    max_body_bytes: int

    async def finish(self, job: Job) -> None:
        """Bring a batch to its end.

        Raises:
            OSError, HostError: the disk is full or cannot be written; to be tried again.
        """
        state = job.state()
        if state.status == "validating":
            state = await asyncio.to_thread(self._begin, job, state)
        if state.is_final:
            return
        if not state.output_id:  # cancelled before it had begun
            job.write_state(state.after("stored", time.time()))
            return
        results = await asyncio.to_thread(Results.open, Files(job.tenant), state)
        event: Event = "stored"
        if state.status == "in_progress":
            event = await self._answer(job, state, results)
            state = replace(state, tally=results.tally)
            if event != "late":
                state = job.write_state(state.after(event, time.time()))
                event = "stored"
        await asyncio.to_thread(_publish, job, state)
        job.write_state(state.after(event, time.time()))

    def _begin(self, job: Job, state: State) -> State:
        """Check the input; with the ids of its files, the batch can be gone on with."""
        if event := wish(job, time.time()):
            return job.write_state(state.after(event, time.time()))
        checked = check_input(
            job.input,
            job.order.endpoint,
            max_lines=self.max_lines,
            max_body_bytes=self.max_body_bytes,
        )
        if checked.problems:
            refused = replace(state, problems=checked.problems)
            return job.write_state(refused.after("refused", time.time()))
        accepted = replace(
            state, total=checked.total, output_id=new_file_id(), errors_id=new_file_id()
        )
        return job.write_state(accepted.after("accepted", time.time()))

    async def _answer(self, job: Job, state: State, results: Results) -> Event:
        """Answer what is not answered yet, until all is or the batch is to end."""
        event = wish(job, time.time()) or await self._answer_until(job, state, results)
        if event == "late":
            await asyncio.to_thread(self._give_up, job, results)
        await asyncio.to_thread(results.flush)
        return event

    async def _answer_until(self, job: Job, state: State, results: Results) -> Event:
        asking = asyncio.create_task(self._ask_all(job, results))
        event: Event | None = None
        try:
            while event is None:
                await asyncio.wait({asking}, timeout=GROUP_S)
                before = state.tally
                state = replace(state, tally=results.tally)
                await asyncio.to_thread(results.flush)
                if state.tally != before:
                    await asyncio.to_thread(job.write_state, state)
                if asking.done():
                    await asking
                    event = "answered"
                else:
                    event = wish(job, time.time())
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return event

    async def _ask_all(self, job: Job, results: Results) -> None:
        handler = self.handlers[job.order.endpoint]
        begun = asyncio.Semaphore(self.max_concurrency)
        async with asyncio.TaskGroup() as group:
            for line in read_lines(job.input, job.order.endpoint):
                if line.custom_id in results.done:
                    await asyncio.sleep(0)  # a long file must not hold up other batches
                    continue
                await begun.acquire()
                task = group.create_task(self._ask(handler, line, job, results))
                # Not in the task: one that is cancelled before it begins does nothing at all.
                task.add_done_callback(lambda _: begun.release())

    async def _ask(self, handler: Handler, line: Line, job: Job, results: Results) -> None:
        reply = await ask(handler, line.body, job.order.tenant, self.retry, self.slots)
        results.add(reply.line(line.custom_id, _line_id()), is_error=reply.status != 200)

    def _give_up(self, job: Job, results: Results) -> None:
        """Say of every request without an answer that its time is over."""
        error = {
            "code": "batch_expired",
            "message": "the completion window was over before this request was answered",
        }
        for line in read_lines(job.input, job.order.endpoint):
            missed = {
                "id": _line_id(), "custom_id": line.custom_id, "response": None, "error": error,
            }  # fmt: skip
            results.add(missed, is_error=True)


def wish(job: Job, now_s: float) -> Event | None:
    """Why a batch is to end before it is done, if it is."""
    if job.cancel_s() is not None:
        return "cancel"
    return "late" if now_s >= job.order.expires_s else None


def _publish(job: Job, state: State) -> None:
    """Make files of what has been written."""
    files, order = Files(job.tenant), job.order
    for file_id, count, suffix in (
        (state.output_id, state.tally.completed, "output"),
        (state.errors_id, state.tally.failed, "error"),
    ):
        if not count:
            files.remove(file_id)
        else:
            name = f"{order.id}_{suffix}.jsonl"
            files.publish(record_of(files, file_id, name, "batch_output", order.keep_outputs_s))


def _line_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"
