"""BatchReplica: the executor of batches in a Ray Serve replica of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from ray import serve

from raylm.config.serve import ServeConfig
from raylm.engine import background
from raylm.serve.batches.executor import Executor
from raylm.serve.catalog import ServedModel
from raylm.serve.endpoints import Gateway
from raylm.serve.failover import RetryBudget
from raylm.serve.gateway import catalog_of, dispatch_of, prepare_process
from raylm.serve.limits import Admission
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.readiness import Readiness
from raylm.serve.turns import Turns

BATCH_PRIORITY = background.PRIORITY
"""In the engines: below every request that somebody waits for."""


class BatchReplica:
    """A gateway without HTTP, whose one client is the executor."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: Mapping[str, Any],
        engine_key: str,
        ledger: Any,
        results: Any,
        root: Path,
        **engines: Any,
    ) -> None:
        prepare_process()
        config = ServeConfig.model_validate(settings)
        assert config.batches is not None
        metrics = GatewayMetrics(serve.get_replica_context().replica_id.unique_id)
        most = concurrency(config)
        turns = Turns(most)
        catalog = catalog_of(models, engines, config, RetryBudget(most), metrics)
        self._gateway = Gateway(
            catalog=catalog,
            limits=config.limits,
            admission=Admission(most, turns),
            dispatch=dispatch_of(
                config, engine_key, turns, metrics, ledger=ledger, results=results
            ),
            metrics=metrics,
            readiness=Readiness(catalog, num_replicas=config.min_replicas),
            priority=BATCH_PRIORITY,
        )
        self._executor = Executor(
            root, self._gateway, max_lines=config.batches.max_lines, max_concurrency=most
        )
        # Serve constructs replicas on the loop that runs their methods.
        self._work = asyncio.get_running_loop().create_task(self._executor.run())

    async def wake(self) -> None:
        """There is a new batch, or a wish to cancel one."""
        self._executor.wake()

    async def families(self) -> list[Metric]:
        """The metrics of the requests in batches."""
        return self._gateway.families()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises."""
        if self._work.done():
            self._work.result()
            raise RuntimeError("the executor has ended")


def concurrency(config: ServeConfig) -> int:
    """Requests of batches at a time: half of what one model's replicas take, at most.

    Priorities count in the engine alone: what waits for a place in a replica would wait for
    batches, too.
    """
    assert config.batches is not None
    places = max(1, config.min_replicas) * config.max_ongoing_requests
    return max(1, min(config.batches.max_concurrency, places // 2))
