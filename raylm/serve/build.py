"""The Serve application of an endpoint: engine deployments, and the gateway in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.serve.catalog import ServedModel
from raylm.serve.gateway import GatewayReplica, handle_key
from raylm.serve.replica import EngineReplica

APP = "raylm"
GATEWAY = "gateway"
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 10.0
_UNLIMITED = 100_000
_ONE_LOOP = {
    # Requests, chunks and the router share the replica's own event loop: no hand-over between
    # threads for every chunk, and a slow reader is felt instead of buffered without bound.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


def build_application(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    *,
    cache_root: Path,
    key_hashes: Sequence[bytes],
    num_threads: int,
) -> serve.Application:
    """Everything that `serve.run` needs, bound together."""
    engines = {
        handle_key(i): _engine(model, config, engine, cache_root, num_threads)
        for i, model in enumerate(models)
    }
    gateway: Any = serve.deployment(serve.ingress()(GatewayReplica)).options(
        name=GATEWAY,
        num_replicas=config.gateways,
        # The gateway counts for itself, and refuses in OpenAI's shape.
        max_ongoing_requests=_UNLIMITED,
        ray_actor_options=_actor(config.cpus_per_gateway, 1),
        **_lifecycle(config),
    )
    settings = config.model_dump(mode="json")
    return gateway.bind(tuple(models), settings, tuple(key_hashes), **engines)


def engine_name(model: ServedModel) -> str:
    """The name of a model's deployment."""
    return f"engine-{model.name}"


def _engine(
    model: ServedModel, config: ServeConfig, engine: EngineConfig, cache_root: Path, threads: int
) -> Any:
    replica: Any = serve.deployment(EngineReplica).options(
        name=engine_name(model),
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503),
        ray_actor_options=_actor(config.cpus_per_replica, threads),
        **_lifecycle(config),
    )
    settings = engine.model_dump(mode="json") | {"num_threads": threads}
    return replica.bind(model, settings, cache_root)


def _lifecycle(config: ServeConfig) -> dict[str, Any]:
    return {
        "graceful_shutdown_timeout_s": config.drain_s + 5,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        # A model that cannot be loaded will not be loaded by trying again.
        "max_constructor_retry_count": 1,
        "logging_config": LoggingConfig(enable_access_log=False, log_level="WARNING"),
    }


def _actor(num_cpus: float, num_threads: int) -> dict[str, Any]:
    bound = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    env = {name: str(num_threads) for name in bound}
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **_ONE_LOOP}
    return {"num_cpus": num_cpus, "runtime_env": {"env_vars": env}}
