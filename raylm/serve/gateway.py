"""GatewayReplica: the HTTP interface in a Ray Serve replica."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import disable_created_metrics
from prometheus_client.core import Metric
from ray import serve
from starlette.types import ASGIApp

from raylm.config.serve import ServeConfig
from raylm.serve.cache import ResultCache
from raylm.serve.catalog import Catalog, Entry, ServedModel
from raylm.serve.dispatch import Dispatch
from raylm.serve.endpoints import Gateway
from raylm.serve.everyone import ask_all
from raylm.serve.failover import RetryBudget
from raylm.serve.handle_backend import HandleBackend
from raylm.serve.keyring import Keyring
from raylm.serve.keys import Key
from raylm.serve.ledger import Verdict
from raylm.serve.limits import Admission
from raylm.serve.listen import listen_on_node_address
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.quota import Quota
from raylm.serve.readiness import Readiness
from raylm.serve.routes import build_app
from raylm.serve.tenant import Limits
from raylm.serve.turns import Turns

if TYPE_CHECKING:
    from raylm.serve.batches.endpoints import BatchRoutes

READY_S = 2.0
"""How long a request waits for a model that should have a replica, and has none that answers."""
LEASE_SLACK_S = 30.0


class GatewayReplica:
    """Holds handles to the engine replicas of all models; Serve asks it for its ASGI app."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: Mapping[str, Any],
        engine_key: str,
        ledger: Any,
        results: Any,
        keys: Sequence[Key],
        key_file: Path | None,
        batches_root: Path,
        batches: Any = None,
        **engines: Any,
    ) -> None:
        prepare_process()
        config = ServeConfig.model_validate(settings)
        context = serve.get_replica_context()
        self._keyring = Keyring(keys, key_file)
        self._executor = None if batches is None else batches.options(_by_reference=False)
        self._self_handle: Any = None
        self._deployment, self._app = context.deployment, context.app_name
        metrics = GatewayMetrics(context.replica_id.unique_id)
        most = capacity(config, len(models))
        turns = Turns(running(config))
        catalog = catalog_of(models, engines, config, RetryBudget(most), metrics)
        self._readiness = Readiness(catalog, num_replicas=config.min_replicas)
        alone = config.gateways == 1 and self._executor is None
        self._served = [(model.name, model.digest, engine_key) for model in models]
        self._gateway = Gateway(
            catalog=catalog,
            limits=config.limits,
            admission=Admission(most, turns),
            dispatch=dispatch_of(
                config, engine_key, turns, metrics, ledger=ledger, results=results
            ),
            metrics=metrics,
            readiness=self._readiness,
            peers=None if alone else self._all_families,
        )
        self._batches: BatchRoutes | None = None
        if config.batches is not None:
            from raylm.serve.batches.endpoints import BatchRoutes

            self._batches = BatchRoutes(
                batches_root, config.batches, config.limits, self._gateway.admission, self._wake
            )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve after the constructor."""
        return build_app(self._gateway, self._keyring, self._batches)

    async def families(self) -> list[Metric]:
        """This gateway's metrics, for the one that is scraped."""
        return self._gateway.families()

    async def slower(self) -> list[str]:
        """Of quantized models that are slower than what they were made from, a sentence each."""
        return await self._readiness.slower()

    async def served(self) -> list[tuple[str, str, str]]:
        """Name and digest of each model, and the key of its engine's settings."""
        return self._served

    async def drain(self) -> int:
        """Refuse new calls from now on; how many still run."""
        return self._gateway.admission.drain()

    async def _all_families(self) -> list[list[Metric]]:
        if self._self_handle is None:
            handle = serve.get_deployment_handle(self._deployment, self._app)
            self._self_handle = handle.options(_by_reference=False)
        found = await ask_all(self._self_handle, "families")
        if self._executor is not None:
            found += await ask_all(self._executor, "families")
        return [families for families in found if isinstance(families, list)]

    def _wake(self) -> None:
        assert self._executor is not None
        # Not waited for: where it is not there just now, it looks when it comes.
        self._executor.wake.remote()


def catalog_of(
    models: Sequence[ServedModel],
    engines: Mapping[str, Any],
    config: ServeConfig,
    budget: RetryBudget,
    metrics: GatewayMetrics,
) -> Catalog:
    """The models behind handles to their engine replicas."""

    def backend(index: int, model: ServedModel) -> HandleBackend:
        return HandleBackend(
            model.name,
            engines[handle_key(index)],
            budget,
            silence_s=config.silence_s,
            start_s=config.start_timeout_s if config.min_replicas == 0 else READY_S,
            on_lost=metrics.lost,
        )

    # A character is at least a byte, so no longer prompt can be in a body.
    most = 4 * config.limits.max_body_bytes
    return Catalog(Entry.open(m, backend(i, m), max_chars=most) for i, m in enumerate(models))


def prepare_process() -> None:
    """What a replica that answers requests does first."""
    listen_on_node_address()
    # A second series for each counter, of no use to anyone.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    log = logging.getLogger("raylm")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def handle_key(index: int) -> str:
    """The argument that carries the handle of the model with this index."""
    return f"engine_{index}"


def running(config: ServeConfig) -> int:
    """Answers of one model that one gateway has in the engines: its share of what they do."""
    return -(-config.max_replicas * config.max_ongoing_requests // config.gateways)


def capacity(config: ServeConfig, num_models: int) -> int:
    """Calls that one gateway takes on: its share of what the engines do, and its queue."""
    return num_models * running(config) + config.max_queued_requests


def dispatch_of(
    config: ServeConfig,
    engine_key: str,
    turns: Turns,
    metrics: GatewayMetrics,
    *,
    ledger: Any,
    results: Any,
) -> Dispatch:
    """The way of calls to the engines, with handles to what all gateways have in common."""
    return Dispatch(
        quota=_quota(ledger, config, metrics),
        turns=turns,
        metrics=metrics,
        cache=_cache(results),
        engine_key=engine_key,
        isolate=config.isolate_tenants,
    )


def _quota(ledger: Any, config: ServeConfig, metrics: GatewayMetrics) -> Quota:
    """Limits counted by the ledger. Without keys and batches there is none, and nobody has
    limits."""
    handle: Any = None if ledger is None else ledger.options(_by_reference=False)
    # Until a lease ends by itself, its call has ended for certain.
    lease_s = config.limits.request_timeout_s + LEASE_SLACK_S

    async def take(
        lease: str, tenant: str, limits: Limits, num_tokens: int, lease_s: float
    ) -> Verdict:
        return await handle.take.remote(lease, tenant, limits, num_tokens, lease_s)

    async def settle(lease: str, num_tokens: int) -> None:
        await handle.settle.remote(lease, num_tokens)

    # The executor of batches counts as a gateway does.
    num_gateways = config.gateways + (config.batches is not None)
    return Quota(
        take, settle, num_gateways=num_gateways, lease_s=lease_s, on_away=metrics.counted_alone
    )


def _cache(results: Any) -> ResultCache | None:
    if results is None:
        return None
    handle = results.options(_by_reference=False)

    async def get(key: str) -> bytes | None:
        return await handle.get.remote(key)

    async def put(key: str, value: bytes) -> None:
        await handle.put.remote(key, value)

    return ResultCache(get, put)
