"""Results: whole answers that are kept for requests whose answer is always the same.

Pure: which requests those are, what identifies them, and a store bounded in bytes and age.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass

import raylm
from raylm.config.engine import EngineConfig
from raylm.serve.plan import Plan


def is_repeatable(plan: Plan, *, has_seed: bool) -> bool:
    """Whether a request has one answer: it is greedy, or its draws follow a seed of its own."""
    return has_seed or all(r.sampling.temperature == 0 for r in plan.requests)


def engine_key(engine: EngineConfig) -> str:
    """What of an engine's settings may change a text: all but how fast and where it works."""
    return json.dumps(engine.key(), sort_keys=True)


def result_key(plan: Plan, digest: str, engine_key: str, tenant: str) -> str:
    """What identifies an answer: the weights, the engine's settings, whose it is, the request.

    How the answer is written (streamed or whole, echo, usage) is not part of it, nor how long
    the client will wait. `tenant` is empty where answers are shared.
    """
    requests = []
    for request in plan.requests:
        sampling = dataclasses.asdict(request.sampling)
        if request.sampling.temperature == 0:
            sampling["seed"] = 0  # nothing is drawn
        requests.append([request.prompt_ids, request.emitted_ids, request.variant, sampling])
    identity = [raylm.__version__, digest, engine_key, tenant, plan.is_scoring, requests]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Kept:
    value: bytes
    until_s: float


class ResultStore:
    """Answers by key; the one asked for longest ago goes first. Times are monotonic."""

    def __init__(self, *, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, now_s: float) -> bytes | None:
        """The answer of a key, unless it is too old."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until_s <= now_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept.value

    def put(self, key: str, value: bytes, now_s: float) -> None:
        """Keep an answer, for which others may have to go; one that is too large is not kept."""
        if key in self._kept:
            self._drop(key)
        if len(value) > self._max_bytes:
            return
        while self.num_bytes + len(value) > self._max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[key] = _Kept(value, now_s + self._ttl_s)
        self.num_bytes += len(value)

    def _drop(self, key: str) -> None:
        self.num_bytes -= len(self._kept.pop(key).value)
