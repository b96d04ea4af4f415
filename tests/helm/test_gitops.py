"""Examples for Argo CD and Flux: valid, and at peace with the autoscaler."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import ROOT, Manifest, one, problems, render, schemas

GITOPS = ROOT / "k8s/gitops"
FILES = sorted(GITOPS.rglob("*.yaml"))
DOCUMENTS = [
    pytest.param(document, id=f"{path.parent.name}-{document['kind']}-{index}")
    for path in FILES
    for index, document in enumerate(yaml.safe_load_all(path.read_text()))
    if not document["apiVersion"].startswith("kustomize.config")
]


def document(file: str, kind: str, name: str | None = None) -> Manifest:
    return one(tuple(yaml.safe_load_all((GITOPS / file).read_text())), kind, name)


def argo() -> Manifest:
    return document("argocd/raylm.yaml", "Application")


def flux() -> Manifest:
    return document("flux/release/raylm.yaml", "HelmRelease")


def values(tool: str) -> dict[str, Any]:
    found = (
        argo()["spec"]["source"]["helm"]["valuesObject"]
        if tool == "argocd"
        else flux()["spec"]["values"]
    )
    return dict(found)


@pytest.fixture(params=["argocd", "flux"])
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Manifest, ...]:
    """What the chart makes of an example's values."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values(request.param)))
    return render("raylm", tmp_path / "values.yaml")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_is_what_its_controller_takes(document: Manifest) -> None:
    assert problems(document) == []


def test_a_wrong_key_would_be_seen() -> None:
    wrong = argo()
    wrong["spec"]["syncPolicy"]["automated"]["selfheal"] = True
    assert len(problems(wrong)) == 1


def test_paths_are_folders_of_this_repository() -> None:
    apps = [document(f"argocd/{name}.yaml", "Application") for name in ("kuberay", "raylm")]
    paths = [app["spec"]["source"]["path"] for app in apps]
    paths += [
        document("flux/kuberay.yaml", "Kustomization", name)["spec"]["path"]
        for name in ("kuberay", "raylm")
    ]
    assert len(paths) == 4
    for path in paths:
        assert any((ROOT / path / file).is_file() for file in ("Chart.yaml", "kustomization.yaml"))
    listed = yaml.safe_load((GITOPS / "flux/release/kustomization.yaml").read_text())["resources"]
    assert listed == ["raylm.yaml"]


def test_what_they_render_is_valid_and_leaves_the_number_of_pods_alone(
    rendered: tuple[Manifest, ...],
) -> None:
    assert [problem for manifest in rendered for problem in problems(manifest)] == []
    config = one(rendered, "RayService")["spec"]["rayClusterConfig"]
    assert config["enableInTreeAutoscaling"] is True
    assert all("replicas" not in group for group in config["workerGroupSpecs"])
    assert not [m for m in rendered if m["kind"] == "RayCluster"]


def test_argo_renders_the_same_each_time(tmp_path: Path) -> None:
    """It renders without a cluster, where a password made by the chart is always a new one."""

    def twice(given: dict[str, Any], name: str) -> list[tuple[Manifest, ...]]:
        paths = [tmp_path / f"{name}-{i}.yaml" for i in range(2)]
        for path in paths:
            path.write_text(yaml.safe_dump(given))
        return [render("raylm", path) for path in paths]

    first, second = twice(values("argocd"), "example")
    assert first == second
    first, second = twice(values("argocd") | {"fault_tolerance": {}}, "made")
    assert first != second


def test_argo_ignores_replicas_and_nothing_else(rendered: tuple[Manifest, ...]) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not here")
    wanted = one(rendered, "RayService")
    live = json.loads(json.dumps(wanted))
    for group in live["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        group["replicas"] = 3
    by_kind = {rule["kind"]: rule for rule in argo()["spec"]["ignoreDifferences"]}
    assert deleted(live, by_kind["RayService"]["jqPathExpressions"]) == wanted
    cluster = {"spec": live["spec"]["rayClusterConfig"]}
    cluster["spec"]["workerGroupSpecs"][0]["scaleStrategy"] = {"workersToDelete": ["pod-1"]}
    assert deleted(cluster, by_kind["RayCluster"]["jqPathExpressions"]) == {
        "spec": wanted["spec"]["rayClusterConfig"]
    }
    assert "RespectIgnoreDifferences=true" in argo()["spec"]["syncPolicy"]["syncOptions"]


def deleted(document: Manifest, expressions: list[str]) -> Manifest:
    """As Argo CD normalizes what it compares."""
    program = " | ".join(f"del({expression})" for expression in expressions)
    done = subprocess.run(
        ["jq", program], input=json.dumps(document), capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_flux_ignores_the_replicas_of_every_group(rendered: tuple[Manifest, ...]) -> None:
    groups = one(rendered, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (rule,) = flux()["spec"]["driftDetection"]["ignore"]
    assert rule["paths"] == [
        f"/spec/rayClusterConfig/workerGroupSpecs/{i}/replicas" for i in range(len(groups))
    ]
    schema = schemas()["kinds"][f"{rule['target']['group']}/v1/{rule['target']['kind']}"]
    for word in rule["paths"][0].strip("/").split("/"):
        schema = schema["items"] if word.isdigit() else schema["properties"][word]
    assert schema["type"] == "integer"
    assert (
        flux()["spec"]["chartRef"]["name"]
        == document("flux/release/raylm.yaml", "OCIRepository")["metadata"]["name"]
    )


@pytest.mark.parametrize(
    ("tool", "annotation", "value"),
    [
        ("argocd", "argocd.argoproj.io/sync-options", "Prune=false,Delete=false"),
        ("flux", "kustomize.toolkit.fluxcd.io/prune", "disabled"),
    ],
)
def test_no_definition_is_pruned(tool: str, annotation: str, value: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    if tool == "argocd":
        source = document("argocd/kuberay.yaml", "Application")["spec"]["source"]
        path, patches = source["path"], source["kustomize"]["patches"]
    else:
        spec = document("flux/kuberay.yaml", "Kustomization", "kuberay")["spec"]
        path, patches = spec["path"], spec["patches"]
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s", ignore=shutil.ignore_patterns("local/go"))
    for definition in (tmp_path / "k8s/kuberay/crd").iterdir():
        # A megabyte each, of which only the head matters here.
        head = definition.read_text().partition("\nspec:")[0]
        definition.write_text(f"{head}\nspec: {{}}\n")
    overlay = {"resources": [f"k8s/{Path(path).relative_to('k8s')}"], "patches": patches}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )
    made = [m for m in yaml.safe_load_all(done.stdout) if m["kind"] == "CustomResourceDefinition"]
    assert len(made) == 4
    assert {m["metadata"]["annotations"][annotation] for m in made} == {value}
