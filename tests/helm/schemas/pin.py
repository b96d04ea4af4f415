"""Pin the schemas that rendered manifests are checked against: `python tests/helm/schemas/pin.py`.

Taken out of Go modules, of which nothing but the kinds that the charts use is kept, without
descriptions. Closed as the API server's strict field validation is: a field that is not known is
an error.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KUBERNETES = "k8s.io/kubernetes@v1.36.3"
CRDS = {
    "github.com/ray-project/kuberay/ray-operator@v1.6.1": [
        "config/crd/bases/ray.io_rayservices.yaml",
        "config/crd/bases/ray.io_rayjobs.yaml",
        "config/crd/bases/ray.io_raycronjobs.yaml",
    ],
    "sigs.k8s.io/gateway-api@v1.4.1": [
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ],
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": [
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ],
    "github.com/argoproj/argo-cd/v3@v3.5.0": ["manifests/crds/application-crd.yaml"],
    "github.com/fluxcd/source-controller@v1.8.0": [
        "config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",
        "config/crd/bases/source.toolkit.fluxcd.io_ocirepositories.yaml",
    ],
    "github.com/fluxcd/kustomize-controller@v1.7.3": [
        "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    ],
    "github.com/fluxcd/helm-controller@v1.4.0": [
        "config/crd/bases/helm.toolkit.fluxcd.io_helmreleases.yaml",
    ],
}
KINDS = {
    "v1/ConfigMap", "v1/Pod", "v1/Secret", "v1/Service", "v1/ServiceAccount",
    "apps/v1/StatefulSet", "networking.k8s.io/v1/Ingress", "networking.k8s.io/v1/NetworkPolicy",
    "policy/v1/PodDisruptionBudget", "scheduling.k8s.io/v1/PriorityClass",
}  # fmt: skip
OPEN = "x-kubernetes-preserve-unknown-fields"
TEXT_OR_NUMBER = {"type": ["string", "number"]}


def module(name: str) -> Path:
    """The folder of a Go module, downloaded if it is not there."""
    command = ["go", "mod", "download", "-json", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout)["Dir"])


def closed(schema: Any) -> Any:
    """Without descriptions; what has properties has no others."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return TEXT_OR_NUMBER
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            continue
        if key == "default" or (key.startswith("x-") and key != OPEN):
            continue
        if key == "properties":
            kept[key] = {name: closed(inner) for name, inner in value.items()}
        else:
            kept[key] = closed(value)
    if kept.get("properties") and not kept.get(OPEN) and "additionalProperties" not in kept:
        kept["additionalProperties"] = False
    return kept


def kubernetes() -> dict[str, Any]:
    """Definitions of Kubernetes' own kinds and all that they refer to."""
    text = (module(KUBERNETES) / "api/openapi-spec/swagger.json").read_text()
    definitions = json.loads(text)["definitions"]
    quantity = "io.k8s.apimachinery.pkg.api.resource.Quantity"
    definitions[quantity] = TEXT_OR_NUMBER
    kinds = {}
    for name, definition in definitions.items():
        for group in definition.get("x-kubernetes-group-version-kind", []):
            version = "/".join(filter(None, (group["group"], group["version"])))
            if f"{version}/{group['kind']}" in KINDS:
                kinds[f"{version}/{group['kind']}"] = {"$ref": f"#/definitions/{name}"}
    kept: dict[str, Any] = {}
    left = [ref["$ref"] for ref in kinds.values()]
    while left:
        name = left.pop().rpartition("/")[2]
        if name in kept:
            continue
        kept[name] = closed(definitions[name])
        left += [part.split('"')[0] for part in json.dumps(kept[name]).split('"$ref": "')[1:]]
    return {"kinds": kinds, "definitions": kept}


def custom(name: str, path: str) -> dict[str, Any]:
    """Kinds of a custom resource definition."""
    found = yaml.safe_load((module(name) / path).read_text())["spec"]
    kinds = {}
    for version in found["versions"]:
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"$ref": f"#/definitions/{META}"}
        kinds[f"{found['group']}/{version['name']}/{found['names']['kind']}"] = schema
    return kinds


META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def main() -> None:
    """Write `manifests.json.gz`."""
    schemas = kubernetes()
    for name, paths in CRDS.items():
        for path in paths:
            schemas["kinds"] |= custom(name, path)
    schemas["modules"] = [KUBERNETES, *CRDS]
    raw = json.dumps(schemas, sort_keys=True, separators=(",", ":")).encode()
    (HERE / "manifests.json.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


if __name__ == "__main__":
    main()
