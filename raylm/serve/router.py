"""The request router that Serve runs in each gateway: least loaded of two, in rotation."""

from __future__ import annotations

import random
import time
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

from raylm.engine.encode import EncodeRequest
from raylm.engine.protocol import Request

# Serve pickles this module by value: a name imported from a module would be a copy here.
from raylm.serve import rotation
from raylm.serve.rotation import Leg, rank_replicas

_CHOICES = 2  # the power of two choices: almost the balance of asking all, at a fixed cost


class RotationRouter(FIFOMixin, RequestRouter):
    """Sends a request to the less loaded of two replicas of the best rank."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Two replicas of each rank of `rank_replicas`."""
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        leg = _leg(pending_request)
        ranks = rank_replicas(
            leg.avoid if leg is not None else frozenset(),
            [rotation.ROTATION.standing(name) for name in by_name],
            time.monotonic(),
        )
        return [
            [by_name[name] for name in random.sample(rank, min(_CHOICES, len(rank)))]
            for rank in ranks
        ]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        # Serve tells the outcome of routing only once the replica has accepted, which a
        # frozen one never does; so what it was sent to is noted here.
        leg = _leg(pending_request)
        if leg is not None:
            leg.wait()
        replica: RunningReplica = await super()._choose_replica_for_request(
            pending_request, is_retry=is_retry
        )
        if leg is not None:
            leg.sent(replica.replica_id.unique_id)
        return replica


def _leg(pending_request: PendingRequest | None) -> Leg | None:
    arguments: list[Any] = [] if pending_request is None else pending_request.args
    if arguments and isinstance(arguments[0], Request | EncodeRequest):
        return rotation.ROTATION.legs.get(arguments[0].id)
    return None
