"""Charts and `raylm deploy` against a real API server: what it takes, and what is said of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.cli import main
from tests.helm.api_server import api_server, kuberay_definitions
from tests.helm.charts import CHARTS, CI, NAMESPACE, find_helm, template

CONFIG = f"""
name: demo
serve: {{models: [demo-int8]}}
deploy:
  namespace: {NAMESPACE}
  serving:
    store: {{claim: models}}
    api_keys: {{existing_secret: raylm-keys}}
  training:
    store: {{claim: models}}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
"""
# `edit` would do, but nobody puts its parts together here: that is a controller's work.
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: editor}
rules:
  - apiGroups: ["", apps, networking.k8s.io, policy, ray.io]
    resources: ["*"]
    verbs: ["*"]
"""
# Of other operators, whose definitions are not here; the schemas have checked them.
FOREIGN = ["monitoring.service_monitor=false", "monitoring.prometheus_rule=false"]


def kubectl(folder: Path, *words: str, stdin: str | None = None) -> str:
    command = ["kubectl", f"--kubeconfig={folder / 'admin.kubeconfig'}", *words]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a namespace, in which an editor may make what the charts make, and nothing else."""
    find_helm()
    with api_server(tmp_path_factory.mktemp("api")) as folder:
        kubectl(folder, "create", "namespace", NAMESPACE)
        kubectl(folder, "-n", NAMESPACE, "create", "serviceaccount", "default")
        make = ["-n", NAMESPACE, "create"]
        kubectl(folder, *make, "-f", "-", stdin=ROLE)
        kubectl(folder, *make, "rolebinding", "editor", "--role=editor", "--user=editor")
        yield folder


@pytest.fixture
def deploy(
    server: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """`raylm deploy` as the editor; exit code, document and what was said."""
    monkeypatch.setenv("KUBECONFIG", str(server / "editor.kubeconfig"))
    (tmp_path / "raylm.yaml").write_text(CONFIG)

    def run(command: str, *more: str) -> tuple[int, Any, str]:
        words = ["deploy", command, "-c", str(tmp_path / "raylm.yaml"), "-o", "json", *more]
        code = main(words)
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out else None, shown.err

    return run


def names(server: Path) -> set[str]:
    kinds = "rayservices,rayjobs,services,statefulsets,networkpolicies,poddisruptionbudgets"
    return set(kubectl(server, "get", kinds, "-o", "name").split())


def test_without_kuberay_nothing_is_made(server: Path, deploy: Any) -> None:
    if "rayservices" in kubectl(server, "api-resources", "-o", "name"):
        pytest.skip("KubeRay's definitions are there already")
    code, _, said = deploy("install")
    assert code == 3 and "error[kuberay-missing]: this cluster has no rayservices.ray.io" in said
    assert names_without_ray(server) == set()


def names_without_ray(server: Path) -> set[str]:
    return set(kubectl(server, "get", "services,statefulsets,secrets", "-o", "name").split())


@pytest.fixture(scope="module")
def kuberay(server: Path) -> None:
    kubectl(server, "create", "-f", str(kuberay_definitions()))
    kubectl(server, "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


@pytest.mark.usefixtures("kuberay")
@pytest.mark.parametrize(("chart", "values"), CI)
def test_a_server_takes_every_field(server: Path, chart: str, values: Path) -> None:
    sets = FOREIGN if chart == "raylm" else FOREIGN[:1]
    options = [w for text in sets for w in ("--set", text)]
    options += ["--set", "http_route.enabled=false"] if chart == "raylm" else []
    manifests = template(chart, "-f", values, *options).stdout
    taken = kubectl(
        server, "create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifests
    )
    assert taken.count("created (server dry run)") >= 3


@pytest.mark.usefixtures("kuberay")
def test_what_is_missing_is_said_in_one_line_and_nothing_is_made(server: Path, deploy: Any) -> None:
    before = names(server)

    def refused(said: str, *more: str) -> None:
        code, shown, errors = deploy("install", *more)
        assert code in (2, 3) and shown is None
        assert said in errors.splitlines()[0]
        assert names(server) == before

    refused("api_keys.existing_secret: there is no secret 'raylm-keys'")
    make = ["create", "secret", "generic", "raylm-keys", "--from-literal=keys.json={}"]
    kubectl(server, *make)
    refused("the secret 'raylm-keys' has no entry 'client-key'")
    kubectl(server, "delete", "secret", "raylm-keys")
    kubectl(server, *make, "--from-literal=client-key=sk-x")
    refused("there is no PersistentVolumeClaim 'models'")
    refused('context "nowhere" does not exist', "--context", "nowhere")
    kubectl(server, "create", "-f", "-", stdin=CLAIM)


@pytest.mark.usefixtures("kuberay")
def test_helm_alone_looks_at_secrets_too(server: Path) -> None:
    command = [
        find_helm(), "install", "alone", str(CHARTS / "raylm"), "-n", NAMESPACE,
        f"--kubeconfig={server / 'editor.kubeconfig'}",
        "-f", str(CHARTS / "raylm/ci/minimal-values.yaml"), "--set", "api_keys.existing_secret=x",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f'there is no secret "x" in the namespace {NAMESPACE}' in done.stderr


@pytest.mark.usefixtures("kuberay")
def test_a_release_is_made_changed_put_back_and_removed(server: Path, deploy: Any) -> None:
    before = names(server)
    code, seen, _ = deploy("install", "--wait-s", "0")
    assert code == 0
    assert (seen["name"], seen["revision"], seen["state"]) == ("demo", 1, "starting")
    password = _password(server)
    assert "error[release-exists]" in deploy("install")[2]

    deploy("upgrade", "--set", "serve.replicas=3", "--wait-s", "0")
    assert "replicas: 3" in _config(server)
    assert _password(server) == password, "the head must get into its own state again"
    code, seen, _ = deploy("rollback", "--wait-s", "0")
    assert (code, seen["revision"]) == (0, 3)
    assert "replicas: 2" in _config(server)
    assert "release has no 9 version" in deploy("rollback", "9")[2]

    code, _, said = deploy("upgrade", "--wait-s", "1")
    assert code == 3 and "error[release-not-ready]: demo is starting after 1 s" in said
    assert deploy("uninstall")[:2] == (0, {"release": "demo", "removed": True})
    assert names(server) == before
    for command in ("status", "upgrade", "rollback", "uninstall"):
        assert "error[release-missing]" in deploy(command)[2]


@pytest.mark.usefixtures("kuberay")
def test_a_run_is_a_release_of_its_own(server: Path, deploy: Any) -> None:
    code, seen, _ = deploy("install", "--train")
    assert (code, seen["chart"], seen["state"]) == (0, "raylm-train", "starting")
    assert "rayjob.ray.io/demo-train" in names(server)
    assert deploy("uninstall", "--train")[0] == 0
    assert "rayjob.ray.io/demo-train" not in names(server)


def _config(server: Path) -> str:
    return kubectl(server, "get", "rayservice/demo", "-o", "jsonpath={.spec.serveConfigV2}")


def _password(server: Path) -> str:
    found = kubectl(server, "get", "secret/demo-redis", "-o", "jsonpath={.data.password}")
    assert found
    return found
