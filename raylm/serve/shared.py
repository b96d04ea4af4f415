"""What all gateways of an endpoint have in common: the ledger of limits, and kept answers.

Each is a Serve deployment of one replica, so that it is replaced when it dies; what it held is
lost then, and answers go on without it. They do next to no work and take no CPU of their own.
"""

from __future__ import annotations

import time

from raylm.serve.ledger import Ledger, Verdict
from raylm.serve.listen import listen_on_node_address
from raylm.serve.results import ResultStore
from raylm.serve.tenant import Limits


class LedgerReplica:
    """Counts tenants' limits for all gateways."""

    def __init__(self) -> None:
        listen_on_node_address()
        self._ledger = Ledger()

    async def take(
        self, lease: str, tenant: str, limits: Limits, num_tokens: int, lease_s: float
    ) -> Verdict:
        """Judge a call, and count it if it may begin."""
        now_s = time.monotonic()
        return self._ledger.take(lease, tenant, limits, num_tokens, now_s=now_s, lease_s=lease_s)

    async def settle(self, lease: str, num_used_tokens: int) -> None:
        """A call has ended."""
        self._ledger.settle(lease, num_used_tokens, now_s=time.monotonic())


class ResultsReplica:
    """Keeps answers for all gateways."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        listen_on_node_address()
        self._store = ResultStore(max_bytes=max_bytes, ttl_s=ttl_s)

    async def get(self, key: str) -> bytes | None:
        """The answer of a key, if it is kept."""
        return self._store.get(key, time.monotonic())

    async def put(self, key: str, value: bytes) -> None:
        """Keep an answer."""
        self._store.put(key, value, time.monotonic())
