"""preflight: what a release needs of a cluster, looked at before anything is made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raylm.deploy.kubernetes.client import Client
from raylm.deploy.kubernetes.values import Chart
from raylm.errors import ConfigError, HostError

KUBERNETES = (1, 30)
"""Of the pods' `lifecycle.preStop.sleep`."""
KINDS: dict[Chart, str] = {"raylm": "rayservices", "raylm-train": "rayjobs"}

_SINCE_1_6 = {
    "rayservices": "spec.rayClusterConfig.authOptions.secretName",
    "rayjobs": "spec.rayClusterSpec.authOptions.secretName",
    "raycronjobs": "spec.jobTemplate.rayClusterSpec.authOptions.secretName",
}


def preflight(client: Client, chart: Chart, values: Mapping[str, Any]) -> None:
    """See that a cluster has what a release needs.

    Raises:
        HostError: Kubernetes or KubeRay is too old or not there, or one may not make what is
            needed.
        ConfigError: a namespace, secret or claim that the configuration names is not there.
    """
    check_kubernetes(json.loads(client.kubectl("version", "-o", "json")))
    kind = "raycronjobs" if values.get("schedule") else KINDS[chart]
    check_kuberay(client, kind)
    _check_namespace(client)
    if not client.may("create", f"{kind}.ray.io"):
        raise HostError(
            f"you may not make {kind} in this namespace",
            code="kubernetes-forbidden",
            hint="ask who runs the cluster for a role",
        )
    for name, entries, key in needed_secrets(values):
        check_secret(client.get(f"secret/{name}"), name, entries, key)
    for name, key in needed_claims(values):
        if client.get(f"persistentvolumeclaim/{name}") is None:
            raise ConfigError(
                f"{key}: there is no PersistentVolumeClaim {name!r}", code="claim-missing"
            )


def check_kubernetes(version: Mapping[str, Any]) -> None:
    """See that the server is new enough. Pure.

    Raises:
        HostError: it is not, or did not say.
    """
    server = version.get("serverVersion")
    if not server:
        raise HostError(
            "the cluster cannot be reached: it did not tell its version",
            code="kubernetes-unreachable",
        )
    numbers = [int(re.sub(r"\D.*", "", str(server[part]))) for part in ("major", "minor")]
    if tuple(numbers) < KUBERNETES:
        wanted = ".".join(map(str, KUBERNETES))
        raise HostError(
            f"Kubernetes is {server['gitVersion']}, and {wanted} or later is needed",
            code="kubernetes-too-old",
        )


def check_kuberay(client: Client, kind: str) -> None:
    """See that KubeRay's custom resources are there, and of 1.6 or later.

    Asked of the API's own description, which everybody may read; definitions need more rights.

    Raises:
        HostError: they are not.
    """
    install = "install the KubeRay operator 1.6 or later, with its custom resources"
    try:
        # Ray's token from an existing secret is new in 1.6.
        client.kubectl("explain", f"{kind}.{_SINCE_1_6[kind]}", "--api-version=ray.io/v1")
    except HostError as error:
        if "does not exist" in error.message:
            raise HostError(
                f"{kind}.ray.io is of a KubeRay before 1.6", code="kuberay-too-old", hint=install
            ) from None
        if error.code == "kubectl-failed":
            raise HostError(
                f"this cluster has no {kind}.ray.io", code="kuberay-missing", hint=install
            ) from None
        raise


def _check_namespace(client: Client) -> None:
    try:
        found = client.namespace is None or client.get(f"namespace/{client.namespace}")
    except HostError as error:
        if error.code != "kubernetes-forbidden":
            raise
        return  # who may not look at namespaces learns it by what is in them
    if not found:
        raise ConfigError(
            f"there is no namespace {client.namespace}",
            code="namespace-missing",
            hint=f"kubectl create namespace {client.namespace}",
        )


def needed_secrets(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Secrets that must be there: name, entries, and the value that names it. Pure."""
    keys = values.get("api_keys", {})
    if name := keys.get("existing_secret"):
        entries = (keys["keys_entry"], keys["client_entry"])
        yield name, entries, "api_keys.existing_secret"
    if name := values["ray_auth"].get("existing_secret"):
        yield name, ("auth_token",), "ray_auth.existing_secret"
    redis = values.get("fault_tolerance", {})
    if redis.get("enabled") and (name := redis.get("existing_secret")):
        yield name, (redis["password_key"],), "fault_tolerance.existing_secret"
    if name := values["store"].get("credentials_secret"):
        yield name, (), "store.credentials_secret"
    for name in values["image"]["pull_secrets"]:
        yield name, (), "image.pull_secrets"


def needed_claims(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Claims that must be there: name, and the value that names it. Pure."""
    if name := values["store"].get("claim"):
        yield name, "store.claim"
    for key in ("cache_claim", "data_claim"):
        if name := values.get(key):
            yield name, key


def check_secret(
    secret: Mapping[str, Any] | None, name: str, entries: tuple[str, ...], key: str
) -> None:
    """See that a secret is there with its entries; their content is not looked at. Pure.

    Raises:
        ConfigError: it is not.
    """
    if secret is None:
        raise ConfigError(f"{key}: there is no secret {name!r}", code="secret-missing")
    missing = [entry for entry in entries if entry not in (secret.get("data") or {})]
    if missing:
        raise ConfigError(
            f"{key}: the secret {name!r} has no entry {missing[0]!r}", code="secret-missing"
        )
