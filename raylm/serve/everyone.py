"""Ask all replicas of a deployment; those that do not answer in time are left out."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

ANSWER_TIMEOUT_S = 2.0


async def ask_all(handle: Any, method: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> list[Any]:
    """What `method` returns on each replica that answers; empty where none can be reached."""
    response = handle.broadcast(method)
    try:
        async with asyncio.timeout(timeout_s):
            # Serve's own gathering fails as a whole when a single replica is frozen.
            replicas = await response._fetch_replica_results_async()
    except (TimeoutError, RayError, RayServeException):
        return []
    answers = await asyncio.gather(
        *(asyncio.wait_for(each.get_async(), timeout_s) for each in replicas),
        return_exceptions=True,
    )
    return [answer for answer in answers if not isinstance(answer, BaseException)]
