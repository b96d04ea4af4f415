"""Readiness: which engine replicas can work, asked of themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from raylm.serve.backend import ReplicaState
from raylm.serve.catalog import Catalog
from raylm.serve.slower import paces, slower_than_originals

log = logging.getLogger("raylm.serve")
FRESH_S = 0.5
"""Answers are kept this long: `/readyz` is public, and must not be a lever on the engines."""


class Readiness:
    """Asks the engine replicas of all models how they are; several askers share one round."""

    def __init__(self, catalog: Catalog, *, num_replicas: int = 1) -> None:
        self._catalog = catalog
        self._num_replicas = num_replicas
        self._lock = asyncio.Lock()
        self._states: dict[str, list[ReplicaState]] = {}
        self._asked_s = -FRESH_S
        self._told: set[str] = set()

    async def states(self) -> dict[str, list[ReplicaState]]:
        """The replicas that answered, by model."""
        async with self._lock:
            if time.monotonic() - self._asked_s >= FRESH_S:
                entries = self._catalog.entries
                found = await asyncio.gather(*(entry.backend.states() for entry in entries))
                names = [entry.model.name for entry in entries]
                self._states = dict(zip(names, found, strict=True))
                self._asked_s = time.monotonic()
                for text in self._slower():
                    if text not in self._told:
                        log.warning("%s", text)
                    self._told.add(text)
            return self._states

    async def slower(self) -> list[str]:
        """Of quantized models that are slower than what they were made from, a sentence each."""
        await self.states()
        return self._slower()

    def _slower(self) -> list[str]:
        models = [entry.model for entry in self._catalog.entries]
        return slower_than_originals(paces(models, self._states))

    async def report(self) -> dict[str, Any]:
        """What `/readyz` says: ready when each model that must have a replica has one that
        can work."""
        models, problems = {}, []
        for name, states in (await self.states()).items():
            working = sum(state.problem is None for state in states)
            models[name] = {"replicas_ready": working, "replicas": self._num_replicas}
            if working < self._num_replicas:
                problems.append(f"{name}: {working} of {self._num_replicas} replicas ready")
        # A model that may have no replica at all gets one with its first request.
        needed = min(1, self._num_replicas)
        ready = all(model["replicas_ready"] >= needed for model in models.values())
        return {"ready": ready, "models": models, "problems": problems}
