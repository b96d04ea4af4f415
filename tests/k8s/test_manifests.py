"""What is written down twice is the same in both places."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from k8s import pins
from k8s.local import binaries, images
from k8s.local.node import PAUSE_IMAGE
from k8s.local.plan import DNS_SERVICE, DOMAIN

_K8S = Path(pins.__file__).parent


def _objects(path: str) -> dict[tuple[str, str], Any]:
    found = yaml.safe_load_all((_K8S / path).read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def _kustomization(folder: str) -> Any:
    return yaml.safe_load((_K8S / folder / "kustomization.yaml").read_text())


def test_the_manifests_of_kuberay_are_those_of_its_module() -> None:
    assert pins.SUMS.read_text() == pins.checksums()
    for line in pins.SUMS.read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((pins.FOLDER / name).read_bytes()).hexdigest() == digest


def test_every_manifest_of_kuberay_is_applied() -> None:
    resources = set(_kustomization("kuberay")["resources"])
    pinned = {line.split()[1] for line in pins.SUMS.read_text().splitlines()}
    assert resources == pinned | {"namespace.yaml"}


def test_overlays_take_the_operator_of_the_pinned_version() -> None:
    version = binaries.version(binaries.KUBERAY)
    for overlay in ("overlays/local", "overlays/cluster"):
        (image,) = _kustomization(overlay)["images"]
        assert (image["name"], image["newTag"]) == ("kuberay/operator", version)
    (image,) = _kustomization("overlays/local")["images"]
    assert images.operator().name == f"{image['newName']}:{image['newTag']}"


def test_dns_has_the_planned_address_and_the_image_that_is_built() -> None:
    objects = _objects("local/manifests/coredns.yaml")
    assert objects["Service", "kube-dns"]["spec"]["clusterIP"] == DNS_SERVICE
    pod = objects["Deployment", "coredns"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == images.coredns().name
    assert f"kubernetes {DOMAIN} " in objects["ConfigMap", "coredns"]["data"]["Corefile"]


def test_plugins_in_the_corefile_are_compiled_in() -> None:
    main = (_K8S / "local/go/kubernetes/coredns/main.go").read_text()
    order = re.search(r"Directives = \[\]string\{(.*?)\}", main, re.DOTALL)
    assert order
    corefile = _objects("local/manifests/coredns.yaml")["ConfigMap", "coredns"]["data"]["Corefile"]
    used = re.findall(r"^ {4}([a-z]+)", corefile, re.MULTILINE)
    assert set(used) == set(re.findall(r'"(\w+)"', order[1]))
    for name in used:
        package = "metrics" if name == "prometheus" else name
        assert f'coredns/plugin/{package}"' in main


def test_images_have_full_names() -> None:
    # A short name would get a registry's prefix, and be pulled.
    names = [image.name for image in images.cluster_images()]
    assert PAUSE_IMAGE in names
    assert all(re.fullmatch(r"raylm\.local/[a-z-]+:v?[\d.]+", name) for name in names)


def test_releases_may_only_run_restricted_pods() -> None:
    namespace = _objects("base/namespace.yaml")["Namespace", "raylm"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
