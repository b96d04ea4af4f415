"""Questions beside requests: a replica that takes no more work still says how it is.

Ray Serve lets every call wait for a place among `max_ongoing_requests` (ray/serve/_private/
replica.py, `_start_request`, 2.60), so that `/readyz` would take an endpoint under full load for
dead, and `/metrics` would be blind when it matters.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from ray.serve._private.replica import Replica


def answer_beside_requests(*methods: str) -> None:
    """Call in a replica's constructor: these methods need no place."""
    start = Replica._start_request

    @asynccontextmanager
    async def start_beside(self: Any, request_metadata: Any) -> AsyncGenerator[None, None]:
        if request_metadata.call_method in methods:
            yield
            return
        async with start(self, request_metadata):
            yield

    Replica._start_request = start_beside
