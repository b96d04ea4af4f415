"""The `deploy` section: the same run on Kubernetes. Its parts are the values of the charts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raylm.config.pods import (
    AutoscalerConfig,
    HeadConfig,
    ImageConfig,
    MetricsConfig,
    MonitoringConfig,
    NetworkPolicyConfig,
    PlacementConfig,
    PodConfig,
    PriorityConfig,
    Quantity,
    RayAuthConfig,
    ResourcesConfig,
    StoreConfig,
    WorkerGroup,
)
from raylm.config.section import Section

RELEASE = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
"""At most 40: KubeRay allows 47, and adds to it."""


class RedisConfig(PlacementConfig):
    """The small Redis that comes with the release."""

    image: ImageConfig = ImageConfig(repository="redis", tag="7.4")
    """Its image."""
    resources: ResourcesConfig = ResourcesConfig(
        requests={"cpu": "50m", "memory": "64Mi"}, limits={"cpu": "500m", "memory": "256Mi"}
    )
    """Its CPU and memory."""
    storage: Quantity | None = None
    """Size of a volume for it; without one it forgets everything when its pod is replaced."""
    storage_class: str | None = None
    """Storage class of that volume; none takes the cluster's default."""


class FaultToleranceConfig(Section):
    """The loss of the head: what it knows lies in Redis, replicas and streams go on."""

    enabled: bool = True
    """Keep the head's state in Redis."""
    address: str | None = Field(None, pattern=r"^(rediss?://)?[A-Za-z0-9.-]+:\d+$")
    """`host:port` of an existing Redis; none has the release bring a small one."""
    existing_secret: str | None = None
    """Secret with Redis's password; none has one made for the included Redis."""
    password_key: str = "password"
    """The secret's entry."""
    redis: RedisConfig = RedisConfig()
    """The included Redis."""


class IncrementalConfig(Section):
    """KubeRay's upgrade over two clusters, with the traffic moved in steps by a Gateway."""

    gateway_class: str | None = None
    """GatewayClass of the cluster; required for this strategy."""
    max_surge_percent: int = Field(100, ge=1, le=100)
    """Capacity that the new cluster gets at a time."""
    step_percent: int = Field(10, ge=1, le=100)
    """Share of the traffic that moves at a time."""
    interval_s: int = Field(30, ge=1)
    """Seconds between steps."""


class UpgradeConfig(Section):
    """How a release changes while it serves."""

    strategy: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] = "NewCluster"
    """What a change of pods (image, resources) does: NewCluster starts a second cluster and moves
    to it when it is ready; None leaves the pods as they are. A change of models, `serve` or
    `engine` alone never needs another cluster: replicas are replaced in place."""
    surge_percent: int = Field(25, ge=0, le=100)
    """Replicas that are started before old ones are ended, of those a deployment has, and at
    least one; 0 ends the old ones first."""
    deletion_delay_s: int = Field(60, ge=0)
    """The old cluster stays for so long after the move."""
    incremental: IncrementalConfig = IncrementalConfig()
    """For NewClusterWithIncrementalUpgrade; the operator's feature gate
    RayServiceIncrementalUpgrade must be on."""


class ApiKeysConfig(Section):
    """API keys of the endpoint, in a secret that exists before the release."""

    existing_secret: str | None = None
    """The secret; required."""
    keys_entry: str = "keys.json"
    """Its entry with the key store that `raylm keys` writes, or with one key a line."""
    client_entry: str = "client-key"
    """Its entry with one key in clear, which the readiness probe, `helm test` and Prometheus
    use; it needs the scopes infer and metrics."""


class ModelRef(Section):
    """One model to serve."""

    ref: str = Field(min_length=1)
    """Artifact of the store (a name, `name-digest`), or the absolute path of a folder."""
    group: str | None = None
    """Worker group on which its replicas run; none: on any."""


class ServiceConfig(Section):
    """The endpoint's name and port in the cluster: <release>.<namespace>.svc."""

    type: Literal["ClusterIP", "LoadBalancer", "NodePort"] = "ClusterIP"
    """Kind of Service."""
    port: int = Field(8000, ge=1, le=65535)
    """Its port."""
    annotations: dict[str, str] = Field({})
    """Its annotations."""


class IngressConfig(Section):
    """An Ingress in front of the Service."""

    enabled: bool = False
    """Make it."""
    class_name: str | None = None
    """Ingress class; none takes the cluster's default."""
    host: str | None = None
    """Host name; required."""
    tls_secret: str | None = None
    """Existing secret with a certificate for it."""
    annotations: dict[str, str] = Field({})
    """Annotations, for its controller."""


class HttpRouteConfig(Section):
    """A route of the Gateway API in front of the Service."""

    enabled: bool = False
    """Make it."""
    parents: tuple[dict[str, Any], ...] = ()
    """Gateways it hangs on, as in `parentRefs`; required."""
    hosts: tuple[str, ...] = ()
    """Host names."""


class ProbesConfig(Section):
    """When a pod gets traffic: it has answered with a token of its own."""

    period_s: int = Field(5, ge=1)
    """How often readiness is asked."""
    timeout_s: int = Field(10, ge=1)
    """An answer that takes longer counts as none."""
    failures: int = Field(3, ge=1)
    """So many in a row take the pod out of the Service."""
    token_every_s: int = Field(60, ge=1)
    """How often it is a whole answer of one token; between, the gateways are asked how the
    engines are."""


class ServingConfig(Section):
    """A served model: the values of the chart `raylm`, but for models, `serve` and `engine`."""

    image: ImageConfig = ImageConfig()
    """Image of all Ray pods."""
    store: StoreConfig = StoreConfig()
    """Where the models lie; required."""
    cache_claim: str | None = None
    """Existing claim, writable by all pods, for files that engines derive from models, and for
    batches (`serve.batches` needs it); none makes the former in each pod anew."""
    api_keys: ApiKeysConfig = ApiKeysConfig()
    """API keys."""
    ray_auth: RayAuthConfig = RayAuthConfig()
    """Ray's own token."""
    head: HeadConfig = HeadConfig()
    """The head's pod."""
    workers: tuple[WorkerGroup, ...] = Field((WorkerGroup(),), min_length=1)
    """Worker groups: one, or one for each kind of node that models need."""
    autoscaler: AutoscalerConfig = AutoscalerConfig()
    """Pods follow the load."""
    fault_tolerance: FaultToleranceConfig = FaultToleranceConfig()
    """The loss of the head."""
    upgrade: UpgradeConfig = UpgradeConfig()
    """Changes while it serves."""
    probes: ProbesConfig = ProbesConfig()
    """Readiness."""
    service: ServiceConfig = ServiceConfig()
    """The endpoint in the cluster."""
    ingress: IngressConfig = IngressConfig()
    """The endpoint from outside, by an Ingress."""
    http_route: HttpRouteConfig = HttpRouteConfig()
    """The endpoint from outside, by the Gateway API."""
    network_policy: NetworkPolicyConfig = NetworkPolicyConfig()
    """Who may connect."""
    disruption_budget: bool = True
    """A PodDisruptionBudget: drains of nodes leave all but one of the groups' `min` workers."""
    spread: Literal["none", "prefer", "require"] = "prefer"
    """Spread the workers of a group over nodes."""
    priority: PriorityConfig = PriorityConfig()
    """Priority of all pods."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """Prometheus and Grafana."""
    pod: PodConfig = PodConfig()
    """What all pods have."""

    @model_validator(mode="after")
    def _complete(self) -> ServingConfig:
        if self.upgrade.strategy == "NewClusterWithIncrementalUpgrade":
            if self.upgrade.incremental.gateway_class is None:
                raise ValueError(
                    "upgrade.strategy=NewClusterWithIncrementalUpgrade needs "
                    "upgrade.incremental.gateway_class"
                )
            if not self.autoscaler.enabled:
                raise ValueError(
                    "upgrade.strategy=NewClusterWithIncrementalUpgrade needs autoscaler.enabled"
                )
        return self


class QueueConfig(Section):
    """Kueue: the job waits until its queue has room."""

    name: str | None = None
    """The LocalQueue; none: no queue."""
    priority_class: str | None = None
    """The WorkloadPriorityClass."""


class TrainingConfig(Section):
    """A run: the values of the chart `raylm-train`, but for `config`."""

    image: ImageConfig = ImageConfig()
    """Image of all pods."""
    store: StoreConfig = StoreConfig()
    """Where the run, its checkpoints and its results lie; required, and writable."""
    data_claim: str | None = None
    """Existing claim with the corpus, mounted read-only at /data."""
    until: Literal["data", "train", "evaluate", "compress"] | None = None
    """The last stage; none: all of them."""
    retries: int = Field(3, ge=0)
    """Times that a failed job starts again, in a new cluster; it resumes where it was."""
    deadline_s: int | None = Field(None, ge=1)
    """A job that takes longer is ended."""
    keep_s: int = Field(300, ge=0)
    """The pods stay for so long after the job, for their logs."""
    schedule: str | None = Field(None, pattern=r"^(@\w+|\S+( +\S+){4})$")
    """Run again and again, as in cron; the operator's feature gate RayCronJob must be on."""
    suspend: bool = False
    """Make the job, and do not start it."""
    queue: QueueConfig = QueueConfig()
    """Kueue."""
    ray_auth: RayAuthConfig = RayAuthConfig()
    """Ray's own token."""
    head: HeadConfig = HeadConfig()
    """The head's pod, where the driver runs."""
    workers: tuple[WorkerGroup, ...] = Field((WorkerGroup(),), min_length=1)
    """Worker groups."""
    autoscaler: AutoscalerConfig = AutoscalerConfig(enabled=False)
    """Pods follow what the stages ask for; for elastic runs (`train.workers: {min, max}`)."""
    network_policy: NetworkPolicyConfig = NetworkPolicyConfig()
    """Who may connect."""
    monitoring: MetricsConfig = MetricsConfig()
    """Prometheus."""
    priority: PriorityConfig = PriorityConfig()
    """Priority of all pods."""
    spread: Literal["none", "prefer", "require"] = "prefer"
    """Spread the workers of a group over nodes."""
    pod: PodConfig = PodConfig()
    """What all pods have."""


class DeployConfig(Section):
    """The same run on Kubernetes."""

    namespace: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Namespace of the releases; none takes the context's."""
    release: str | None = Field(None, pattern=RELEASE)
    """Name of the served release, and so of the endpoint; none takes the run's name."""
    serving: ServingConfig = ServingConfig()
    """A served model (chart `raylm`)."""
    training: TrainingConfig = TrainingConfig()
    """A run (chart `raylm-train`)."""
