"""Values of the charts: their shape, and how a configuration becomes them. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raylm.config.deploy import ModelRef, ServingConfig, TrainingConfig
from raylm.config.engine import EngineConfig
from raylm.config.pods import Quantity, WorkerGroup
from raylm.config.run import RunConfig
from raylm.config.serve import ServeConfig
from raylm.errors import ConfigError

Chart = Literal["raylm", "raylm-train"]
CHARTS: tuple[Chart, ...] = ("raylm", "raylm-train")
GATEWAYS = 2
"""One that ends must leave another."""
OWNED: dict[Chart, dict[str, frozenset[str]]] = {
    "raylm": {"serve": frozenset({"models", "host", "port", "api_keys"})},
    "raylm-train": {"config": frozenset({"store", "cluster", "deploy"})},
}
"""Keys of raylm.yaml that the chart itself sets, by the value they would be in."""


class ServeValues(ServingConfig):
    """Values of the chart `raylm`: a served model."""

    models: tuple[ModelRef, ...] = ()
    """Models to serve; at least one."""
    serve: ServeConfig = ServeConfig(gateways=GATEWAYS)
    """The `serve` section of raylm.yaml."""
    engine: EngineConfig = EngineConfig()
    """The `engine` section of raylm.yaml."""


class TrainValues(TrainingConfig):
    """Values of the chart `raylm-train`: a run as a Ray job."""

    config: RunConfig = Field(default_factory=RunConfig)
    """The run: the other sections of raylm.yaml."""


MODELS: dict[Chart, type[ServeValues] | type[TrainValues]] = {
    "raylm": ServeValues,
    "raylm-train": TrainValues,
}


def chart_values(config: RunConfig) -> dict[str, Any]:
    """The values of the chart `raylm` for a run's configuration, as plain values.

    Raises:
        ConfigError: what the chart cannot do without is missing, or the models do not fit on the
            most workers there may be.
    """
    deploy, serve = config.deploy.serving, config.serve
    models = [ModelRef(ref=ref) for ref in serve.models]
    if not models:
        raise ConfigError(
            "serve.models is empty: on Kubernetes models are named, not taken from the last run",
            code="no-model",
            hint="set serve.models to artifacts of the store (`raylm models ls`)",
        )
    _need_store(deploy.store.claim, deploy.store.url, "deploy.serving.store")
    if deploy.api_keys.existing_secret is None:
        raise ConfigError(
            "deploy.serving.api_keys.existing_secret is not set, and the endpoint is reachable "
            "from other machines",
            code="keys-needed",
            hint="make a secret with the entries keys.json and client-key (docs/helm.md), and "
            "name it there",
        )
    gateways = serve.gateways if "gateways" in serve.model_fields_set else GATEWAYS
    serve = serve.model_copy(update={"gateways": gateways})
    _check_room(serve, len(models), deploy.workers)
    values = ServeValues(**_fields(deploy), models=tuple(models), serve=serve, engine=config.engine)
    return _plain("raylm", values)


def train_values(config: RunConfig) -> dict[str, Any]:
    """The values of the chart `raylm-train` for a run's configuration, as plain values.

    Raises:
        ConfigError: what the chart cannot do without is missing, or `data.paths` starts at a
            folder of this machine.
    """
    deploy = config.deploy.training
    _need_store(deploy.store.claim, deploy.store.url, "deploy.training.store")
    return _plain("raylm-train", TrainValues(**_fields(deploy), config=config))


def _fields(deploy: ServingConfig | TrainingConfig) -> dict[str, Any]:
    return {name: getattr(deploy, name) for name in type(deploy).model_fields}


def _plain(chart: Chart, values: ServeValues | TrainValues) -> dict[str, Any]:
    dumped = values.model_dump(mode="json", exclude_none=True)
    for key, owned in OWNED[chart].items():
        dumped[key] = {name: value for name, value in dumped[key].items() if name not in owned}
    return dumped


def _need_store(claim: str | None, url: str | None, key: str) -> None:
    if (claim is None) == (url is None):
        raise ConfigError(
            f"{key}: one of claim and url is needed" + (", not both" if claim else ""),
            code="store-needed",
            hint="name a PersistentVolumeClaim that holds the store, or s3://bucket/prefix",
        )


def _check_room(serve: ServeConfig, num_models: int, workers: tuple[WorkerGroup, ...]) -> None:
    engines = num_models * serve.min_replicas * serve.cpus_per_replica
    needed = engines + serve.gateways * serve.cpus_per_gateway
    offered = sum(group.max * whole_cpus(group) for group in workers)
    if needed > offered:
        raise ConfigError(
            f"serving needs {needed:g} CPUs and the most workers of deploy.serving.workers have "
            f"{offered:g}",
            code="not-enough-cpus",
            hint="raise a group's max or its resources, or lower serve.replicas",
        )


def whole_cpus(group: WorkerGroup) -> int:
    """CPUs that Ray offers on a worker: its limit, else its request, rounded up as KubeRay does."""
    resources = group.resources
    amount = resources.limits.get("cpu", resources.requests.get("cpu", 0))
    return -int(-_cpus(amount) // 1)


def _cpus(amount: Quantity) -> float:
    text = str(amount)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        raise ConfigError(f"cpu: {amount!r} is no number of CPUs", code="config-value") from None
