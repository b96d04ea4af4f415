"""The executor: answers the batches on the disk, whoever put them there.

One process at a time, held by a lock on the folder. Everything that it knows is on the disk, so
that another goes on where it was killed. It sleeps while there is nothing to do.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from raylm.serve.batches.ask import Retry, handlers
from raylm.serve.batches.files import Files
from raylm.serve.batches.jobs import Job, Jobs
from raylm.serve.batches.records import PRIVATE_FILE, make_private
from raylm.serve.batches.turns import Turn, next_turns
from raylm.serve.batches.work import Work
from raylm.serve.endpoints import Gateway

log = logging.getLogger("raylm.serve")
MAX_RUNNING = 16
"""Batches that are worked on at a time; they share `max_concurrency`."""
LOOK_S = 30.0
"""How often the folder is looked at without being told to."""
SWEEP_S = 600.0
LOCK_S = 2.0
AFTER_DEFECT_S = 30.0
"""How long a batch rests that could not be gone on with: a full disk, say."""


class Executor:
    """Works on the batches of every tenant below `root`."""

    def __init__(
        self,
        root: Path,
        gateway: Gateway,
        *,
        max_lines: int,
        max_concurrency: int,
        retry: Retry | None = None,
    ) -> None:
        self._root = root
        self._work = Work(
            handlers(gateway),
            max_concurrency,
            asyncio.Semaphore(max_concurrency),
            retry or Retry(),
            max_lines=max_lines,
            max_body_bytes=gateway.limits.max_body_bytes,
        )
        self._wake = asyncio.Event()
        self._running: dict[Turn, asyncio.Task[None]] = {}
        self._over: set[Path] = set()
        """Batches that have ended, and need not be read again."""
        self._swept_s = 0.0

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with _alone(self._root):
            try:
                while True:
                    self._wake.clear()
                    await self._look()
                    try:
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
                    except TimeoutError:
                        continue
            finally:
                for task in self._running.values():
                    task.cancel()
                await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _look(self) -> None:
        """Begin what can be begun, and remove what is over."""
        waiting = await asyncio.to_thread(self._unfinished)
        for turn in self._running:
            waiting.pop(turn, None)
        for turn in next_turns(waiting, self._running, MAX_RUNNING):
            self._running[turn] = asyncio.create_task(self._finish(turn, waiting[turn]))
        if time.monotonic() - self._swept_s > SWEEP_S:
            self._swept_s = time.monotonic()
            await asyncio.to_thread(self._sweep)

    async def _finish(self, turn: Turn, job: Job) -> None:
        try:
            await self._work.finish(job)
        except Exception:
            log.exception("batch %s does not go on; it is tried again", job.order.id)
            await asyncio.sleep(AFTER_DEFECT_S)
        finally:
            del self._running[turn]
            self.wake()

    def _unfinished(self) -> dict[Turn, Job]:
        found: dict[Turn, Job] = {}
        for tenant in _tenants(self._root):
            jobs = Jobs(tenant)
            for folder in jobs.folder.glob("batch_*"):
                job = None if folder in self._over else jobs.find(folder.name)
                if job is None:
                    continue
                if job.state().is_final:
                    self._over.add(folder)
                else:
                    found[Turn(job.order.created_s, tenant.name, job.order.id)] = job
        return found

    def _sweep(self) -> None:
        now_s = time.time()
        for tenant in _tenants(self._root):
            jobs = Jobs(tenant)
            jobs.sweep(now_s)
            states = [job.state() for job in jobs.all()]
            writing = [state for state in states if not state.is_final]
            Files(tenant).sweep(now_s, {i for s in writing for i in (s.output_id, s.errors_id)})
        self._over = {folder for folder in self._over if folder.exists()}


def _tenants(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()]


@asynccontextmanager
async def _alone(root: Path) -> AsyncIterator[None]:
    """Wait for the lock on the folder, and hold it; it is let go of even by a kill."""
    make_private(root)
    descriptor = os.open(root / "executor.lock", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_S)
        yield
    finally:
        os.close(descriptor)
