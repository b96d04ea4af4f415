"""Helm on the charts of this repository, and what it renders, checked against the schemas."""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "helm"
SCHEMAS = Path(__file__).parent / "schemas/manifests.json.gz"
NAMESPACE = "prod"
CI = [
    pytest.param(chart, path, id=f"{chart}-{path.name.removesuffix('-values.yaml')}")
    for chart in ("raylm", "raylm-train")
    for path in sorted((CHARTS / chart / "ci").glob("*-values.yaml"))
]
Manifest = dict[str, Any]


def find_helm() -> str:
    """Helm on PATH or in the cache; skips the test where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm/bin"
    found = shutil.which("helm") or next(map(str, sorted(cache.glob("helm-*"))), None)
    if found is None:
        pytest.skip("helm is neither on PATH nor in the cache (`make helm` builds it there)")
    return found


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it; not on any cluster."""
    env = {**os.environ, "KUBECONFIG": os.devnull}
    command = [find_helm(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def template(
    chart: str, *arguments: str | Path, name: str = "demo"
) -> subprocess.CompletedProcess[str]:
    """Render a chart."""
    return helm("template", name, CHARTS / chart, "--namespace", NAMESPACE, *arguments)


@functools.cache
def render(chart: str, values: Path, *sets: str) -> tuple[Manifest, ...]:
    """What a values file makes of a chart."""
    options = [
        word for text in sets for word in ("--set-json" if text.endswith(".5") else "--set", text)
    ]
    done = template(chart, "-f", values, *options)
    assert done.returncode == 0, done.stderr
    return tuple(m for m in yaml.safe_load_all(done.stdout) if m is not None)


def one(manifests: tuple[Manifest, ...], kind: str, name: str | None = None) -> Manifest:
    """The manifest of a kind."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def serves(values: str = "minimal", *sets: str) -> tuple[Manifest, ...]:
    return render("raylm", CHARTS / f"raylm/ci/{values}-values.yaml", *sets)


def trains(values: str = "minimal", *sets: str) -> tuple[Manifest, ...]:
    return render("raylm-train", CHARTS / f"raylm-train/ci/{values}-values.yaml", *sets)


def serve_config(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    return dict(yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"]))


def pods(manifests: tuple[Manifest, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Every pod's spec that manifests lead to, with where it is."""
    found = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            if "containers" in value:
                found.append((path, value))
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, f"{path}[{index}]")

    for manifest in manifests:
        walk(manifest, manifest["kind"])
    return found


@functools.cache
def schemas() -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(SCHEMAS.read_bytes())))


@functools.cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = schemas()["kinds"][kind] | {"definitions": schemas()["definitions"]}
    return jsonschema.Draft202012Validator(schema)


def problems(manifest: Manifest) -> list[str]:
    """What an API server would refuse of a manifest."""
    kind = f"{manifest['apiVersion']}/{manifest['kind']}"
    return [f"{e.json_path}: {e.message[:200]}" for e in _validator(kind).iter_errors(manifest)]
