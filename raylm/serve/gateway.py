"""GatewayReplica: the HTTP interface in a Ray Serve replica."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import disable_created_metrics
from prometheus_client.core import Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp

from raylm.config.serve import ServeConfig
from raylm.serve.catalog import Catalog, Entry, ServedModel
from raylm.serve.endpoints import Gateway
from raylm.serve.handle_backend import STATE_TIMEOUT_S, HandleBackend
from raylm.serve.limits import Admission
from raylm.serve.listen import listen_on_node_address
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.readiness import Readiness
from raylm.serve.routes import build_app


class GatewayReplica:
    """Holds handles to the engine replicas of all models; Serve asks it for its ASGI app."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: Mapping[str, Any],
        key_hashes: Sequence[bytes],
        **engines: Any,
    ) -> None:
        listen_on_node_address()
        _log_to_stderr()
        # A second series for each counter, of no use to anyone.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        config = ServeConfig.model_validate(settings)
        context = serve.get_replica_context()
        self._hashes = key_hashes
        self._self_handle: Any = None
        self._deployment, self._app = context.deployment, context.app_name
        # A character is at least a byte, so no longer prompt can be in a body.
        max_chars = 4 * config.limits.max_body_bytes
        catalog = Catalog(
            Entry.open(m, HandleBackend(m.name, engines[handle_key(i)]), max_chars=max_chars)
            for i, m in enumerate(models)
        )
        self._gateway = Gateway(
            catalog=catalog,
            limits=config.limits,
            admission=Admission(capacity(config, len(models))),
            metrics=GatewayMetrics(context.replica_id.unique_id),
            readiness=Readiness(catalog, num_replicas=config.replicas),
            peers=self._all_families if config.gateways > 1 else None,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve after the constructor."""
        return build_app(self._gateway, self._hashes)

    async def families(self) -> list[Metric]:
        """This gateway's metrics, for the one that is scraped."""
        return self._gateway.families()

    async def drain(self) -> int:
        """Refuse new calls from now on; how many still run."""
        return self._gateway.admission.drain()

    async def _all_families(self) -> list[list[Metric]]:
        if self._self_handle is None:
            handle = serve.get_deployment_handle(self._deployment, self._app)
            self._self_handle = handle.options(_by_reference=False)
        try:
            found = await self._self_handle.broadcast("families").results_async(
                timeout_s=STATE_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, RayError, RayServeException):
            return []
        return [families for families in found if isinstance(families, list)]


def handle_key(index: int) -> str:
    """The argument that carries the handle of the model with this index."""
    return f"engine_{index}"


def capacity(config: ServeConfig, num_models: int) -> int:
    """Calls that one gateway takes on: its share of what the engines do, and its queue."""
    ongoing = num_models * config.replicas * config.max_ongoing_requests
    return -(-ongoing // config.gateways) + config.max_queued_requests


def _log_to_stderr() -> None:
    log = logging.getLogger("raylm")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
