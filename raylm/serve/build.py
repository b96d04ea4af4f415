"""The Serve application of an endpoint: engine deployments, and the gateway in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.engine.load import takes_vllm
from raylm.serve.batches.replica import BatchReplica
from raylm.serve.catalog import ServedModel
from raylm.serve.gateway import GatewayReplica, handle_key
from raylm.serve.keys import Key
from raylm.serve.replica import EngineReplica
from raylm.serve.results import engine_key
from raylm.serve.router import RotationRouter
from raylm.serve.scaling import scaling
from raylm.serve.shared import LedgerReplica, ResultsReplica
from raylm.serve.vllm import gpu_bundles, vllm_actor

APP = "raylm"
GATEWAY = "gateway"
LEDGER = "ledger"
RESULTS = "results"
BATCHES = "batches"
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 10.0
_UNLIMITED = 100_000
_SERVE_ENV = {
    # Requests, chunks and the router share the replica's own event loop: no hand-over between
    # threads for every chunk, and a slow reader is felt instead of buffered without bound.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # How often they tell Serve's controller their load: its 10 s delay every answer to a burst.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where engine replicas run, and how many more there may be while they are replaced."""

    surge_percent: int = 0
    """Replicas started before old ones end, of those a deployment has; each needs its CPUs."""
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By a model's name, the labels of Ray nodes that its replicas need."""


def build_application(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    *,
    cache_root: Path,
    keys: Sequence[Key],
    key_file: Path | None,
    num_threads: int,
    placement: Placement = Placement(),
) -> serve.Application:
    """Everything that `serve.run` needs, bound together; files and batches lie beside
    `cache_root`, in the store."""
    engines = {
        handle_key(i): _engine(model, config, engine, cache_root, num_threads, placement)
        for i, model in enumerate(models)
    }
    gateway: Any = serve.deployment(serve.ingress()(GatewayReplica)).options(
        name=GATEWAY,
        num_replicas=config.gateways,
        max_surge_percent=placement.surge_percent,
        # The gateway counts for itself, and refuses in OpenAI's shape.
        max_ongoing_requests=_UNLIMITED,
        ray_actor_options=_actor(config.cpus_per_gateway, 1),
        **_lifecycle(config),
    )
    settings = config.model_dump(mode="json")
    names = shared(config, has_keys=bool(keys))
    ledger = _shared(LedgerReplica, LEDGER, config).bind() if LEDGER in names else None
    results = None
    if config.cache is not None:
        kept = config.cache
        results = _shared(ResultsReplica, RESULTS, config).bind(kept.max_bytes, kept.ttl_s)
    # What gateways and the executor of batches ask the engines with.
    common = (tuple(models), settings, engine_key(engine), ledger, results)
    root = cache_root.parent / "batches"
    bound = dict(engines)
    if config.batches is not None:
        executor: Any = serve.deployment(BatchReplica).options(
            name=BATCHES,
            num_replicas=1,
            ray_actor_options=_actor(config.batches.num_cpus, 1),
            **_lifecycle(config),
        )
        bound["batches"] = executor.bind(*common, root, **engines)
    return gateway.bind(*common, tuple(keys), key_file, root, **bound)


def shared(config: ServeConfig, *, has_keys: bool) -> list[str]:
    """Names of the deployments that all gateways have in common."""
    # A batch goes on under its key's limits where no keys are needed any more.
    return (
        [LEDGER] * (has_keys or config.batches is not None)
        + [RESULTS] * (config.cache is not None)
        + [BATCHES] * (config.batches is not None)
    )


def _shared(kind: type, name: str, config: ServeConfig) -> Any:
    deployment: Any = serve.deployment(kind)
    return deployment.options(
        name=name,
        num_replicas=1,
        max_ongoing_requests=_UNLIMITED,
        ray_actor_options=_actor(0, 1),
        **_lifecycle(config),
    )


def engine_name(model: ServedModel) -> str:
    """The name of a model's deployment."""
    return f"engine-{model.name}"


def _engine(
    model: ServedModel,
    config: ServeConfig,
    engine: EngineConfig,
    cache_root: Path,
    threads: int,
    placement: Placement,
) -> Any:
    actor = engine_actor(model, config, threads, placement)
    if takes_vllm(model.path, engine):
        actor = vllm_actor(actor, engine)
    replica: Any = serve.deployment(EngineReplica).options(
        name=engine_name(model),
        **scaling(config),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503),
        request_router_config=RequestRouterConfig(request_router_class=RotationRouter),
        max_surge_percent=placement.surge_percent,
        ray_actor_options=actor,
        **gpu_bundles(model, engine, config.cpus_per_replica),
        **_lifecycle(config),
    )
    return replica.bind(model, engine_settings(engine, threads), cache_root)


def engine_actor(
    model: ServedModel, config: ServeConfig, num_threads: int, placement: Placement
) -> dict[str, Any]:
    """Ray's options for a process that loads a model: its CPUs, environment and nodes."""
    actor = _actor(config.cpus_per_replica, num_threads)
    if labels := placement.labels.get(model.name):
        actor["label_selector"] = dict(labels)
    return actor


def engine_settings(engine: EngineConfig, num_threads: int) -> dict[str, Any]:
    """An engine's configuration as plain values, as an EngineReplica takes it."""
    return engine.model_dump(mode="json") | {"num_threads": num_threads}


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
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **_SERVE_ENV}
    return {"num_cpus": num_cpus, "runtime_env": {"env_vars": env}}
