"""Parts of the `deploy` section that both charts have: image, pods, storage, network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raylm.config.section import Section

Quantity = str | int | float
"""An amount as Kubernetes writes it: 2, 500m, 4Gi."""
NAME = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
DIGEST = r"^sha256:[0-9a-f]{64}$"


class ImageConfig(Section):
    """A container image."""

    repository: str = Field("raylm", min_length=1)
    """Name of the image, with the registry it lies in."""
    tag: str | None = None
    """Version of the image; none takes the chart's `appVersion`."""
    digest: str | None = Field(None, pattern=DIGEST)
    """Content of the image (sha256:...), which is then taken whatever the tag says."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet asks the registry."""
    pull_secrets: tuple[str, ...] = ()
    """Existing secrets with the registry's credentials."""


class ResourcesConfig(Section):
    """CPU, memory and devices of a container, as Kubernetes counts them."""

    requests: dict[str, Quantity] = Field({})
    """What the scheduler keeps free for it."""
    limits: dict[str, Quantity] = Field({})
    """What it never gets more of. Ray offers the limits of cpu and memory, and all GPUs."""


class PlacementConfig(Section):
    """Which nodes pods may run on."""

    node_selector: dict[str, str] = Field({})
    """Labels that a node must have."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that pods put up with, as in a pod's spec."""
    affinity: dict[str, Any] = Field({})
    """Affinity as in a pod's spec."""


class HeadConfig(PlacementConfig):
    """The head: Ray's control plane, which does no work and carries no traffic."""

    resources: ResourcesConfig = ResourcesConfig(
        requests={"cpu": "500m", "memory": "2Gi"}, limits={"cpu": 2, "memory": "4Gi"}
    )
    """CPU and memory of the head."""


class WorkerGroup(PlacementConfig):
    """Pods of one kind that do the work."""

    name: str = Field("workers", pattern=NAME)
    """Names the group; `models[].group` asks for it."""
    min: int = Field(2, ge=0)
    """Pods that are always there."""
    max: int = Field(4, ge=1)
    """More pods than these are never started."""
    idle_timeout_s: int | None = Field(None, ge=0)
    """A pod beyond `min` that does nothing for so long is removed; none takes the autoscaler's."""
    resources: ResourcesConfig = ResourcesConfig(
        requests={"cpu": 2, "memory": "4Gi"}, limits={"cpu": 2, "memory": "4Gi"}
    )
    """CPU, memory and devices of each pod."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkerGroup:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class AutoscalerConfig(Section):
    """Ray's autoscaler (v2): pods follow what Ray Serve or Ray Train ask for."""

    enabled: bool = True
    """Without it, each group has `min` pods."""
    idle_timeout_s: int = Field(120, ge=0)
    """A pod beyond its group's `min` that does nothing for so long is removed."""
    upscaling: Literal["Default", "Conservative"] = "Default"
    """Conservative: no more pods wait to start than run."""
    resources: ResourcesConfig = ResourcesConfig(
        requests={"cpu": "200m", "memory": "512Mi"}, limits={"cpu": "500m", "memory": "1Gi"}
    )
    """CPU and memory of its container, beside the head's."""


class RayAuthConfig(Section):
    """Ray's token: nobody without it talks to the cluster's own ports."""

    existing_secret: str | None = None
    """Secret with the entry `auth_token`; none has KubeRay make one for each cluster."""


class StoreConfig(Section):
    """Where models, data sets and runs lie."""

    claim: str | None = None
    """Existing PersistentVolumeClaim with a store; mounted in every Ray pod, so beyond one node it
    needs the access mode ReadWriteMany (ReadOnlyMany suffices for serving)."""
    sub_path: str | None = None
    """Folder of the claim in which the store lies."""
    url: str | None = Field(None, pattern=r"^(s3|gs)://[^:@\s]+.*$")
    """Object store instead of a claim: s3://bucket/prefix or gs://bucket/prefix."""
    credentials_secret: str | None = None
    """Existing secret whose entries become environment variables (AWS_ACCESS_KEY_ID, ...)."""


class NetworkPolicyConfig(Section):
    """Who may connect to the pods; needs a network plugin that enforces policies."""

    enabled: bool = True
    """Make the policies."""
    clients: tuple[dict[str, Any], ...] = ()
    """Peers that may reach the endpoint, as in a NetworkPolicy's `from`; none lets everybody."""
    operator: dict[str, Any] = Field(
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
        }
    )
    """The KubeRay operator, which asks the head's dashboard."""
    prometheus: dict[str, Any] = Field(
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
        }
    )
    """Prometheus, which reads Ray's metrics."""


class PriorityConfig(Section):
    """What gives way to what when the cluster is full."""

    class_name: str | None = None
    """Existing PriorityClass, or the one that is made."""
    create: bool = False
    """Make a PriorityClass of that name."""
    value: int = Field(100_000, ge=-1_000_000_000, le=1_000_000_000)
    """Its value; pods of lower ones are evicted first."""


class MetricsConfig(Section):
    """For the Prometheus operator; the switch needs its custom resources."""

    service_monitor: bool = False
    """Have Prometheus read the metrics of Ray, and of the endpoint where there is one (with the
    client's key)."""
    labels: dict[str, str] = Field({})
    """Labels of these objects, by which Prometheus selects them."""
    interval: str = Field("30s", pattern=r"^\d+(s|m)$")
    """How often metrics are read."""


class MonitoringConfig(MetricsConfig):
    """For the Prometheus operator and Grafana."""

    prometheus_rule: bool = False
    """Alerts: no model ready, errors, slow first tokens, requests waiting."""
    dashboards: bool = False
    """A ConfigMap that Grafana's sidecar loads."""


class PodConfig(Section):
    """What all Ray pods of the release have."""

    env: dict[str, str] = Field({})
    """Further environment variables; never secrets."""
    labels: dict[str, str] = Field({})
    """Further labels of pods."""
    annotations: dict[str, str] = Field({})
    """Further annotations of pods."""
    user: int = Field(10001, ge=1)
    """The user and group that everything runs as; the image's own."""
    tmp_size: Quantity = "4Gi"
    """Most that a pod may write to its own /tmp: Ray's logs, spilled objects, engine files."""

    @field_validator("env")
    @classmethod
    def _ours_stay(cls, value: dict[str, str]) -> dict[str, str]:
        taken = sorted(name for name in value if name.startswith(("RAY_AUTH", "RAY_REDIS")))
        if taken:
            raise ValueError(f"{', '.join(taken)} is set by ray_auth or fault_tolerance")
        return value
