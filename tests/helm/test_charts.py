"""The charts: what they render is valid, hardened, and what the issue of a release needs."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylm.config.run import RunConfig
from raylm.serve.kube import AppArgs
from tests.helm.charts import (
    CHARTS,
    CI,
    NAMESPACE,
    helm,
    one,
    pods,
    problems,
    render,
    serve_config,
    serves,
    template,
    trains,
)

MINIMAL = CHARTS / "raylm/ci/minimal-values.yaml"


@pytest.mark.parametrize(("chart", "values"), CI)
def test_lint_finds_nothing(chart: str, values: Path) -> None:
    done = helm("lint", CHARTS / chart, "--strict", "-f", values)
    assert done.returncode == 0, done.stdout
    assert not re.search(r"WARNING|ERROR", done.stdout), done.stdout


@pytest.mark.parametrize(("chart", "values"), CI)
def test_kubernetes_and_the_operators_take_what_is_rendered(chart: str, values: Path) -> None:
    manifests = render(chart, values)
    assert len(manifests) >= 3
    found = {f"{m['kind']}/{m['metadata']['name']}": problems(m) for m in manifests}
    assert not any(found.values()), found
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names)), "each object has one author"


def test_the_schemas_refuse_what_is_misspelt() -> None:
    service = copy.deepcopy(one(serves(), "RayService"))
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    head["containers"][0]["imagePullPolicies"] = "Never"
    service["spec"]["upgradeStrategy"]["typ"] = "None"
    found = problems(service)
    assert len(found) == 2
    assert "imagePullPolicies" in " ".join(found) and "'typ'" in " ".join(found)


@pytest.mark.parametrize(("chart", "values"), CI)
def test_pods_are_restricted(chart: str, values: Path) -> None:
    found = pods(render(chart, values))
    assert len(found) >= 3
    for where, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] > 0, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}, where
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert {"requests", "limits"} <= set(container["resources"]), where


@pytest.mark.parametrize(("chart", "values"), CI)
def test_only_a_head_with_an_autoscaler_has_a_token_of_kubernetes(chart: str, values: Path) -> None:
    for where, spec in pods(render(chart, values)):
        has_token = spec.get("automountServiceAccountToken", True)
        scales = "headGroupSpec" in where and "serviceAccountName" not in spec
        assert has_token == scales, where


@pytest.mark.parametrize(("chart", "values"), CI)
def test_no_secret_is_in_what_a_chart_makes_but_the_password_of_its_redis(
    chart: str, values: Path
) -> None:
    made = [m["metadata"]["name"] for m in render(chart, values) if m["kind"] == "Secret"]
    assert made in ([], ["demo-redis"])


@pytest.mark.parametrize(("chart", "values"), CI)
def test_labels_of_pods_have_no_version_that_would_make_a_new_cluster(
    chart: str, values: Path
) -> None:
    manifests = render(chart, values)
    jobs = [m for m in manifests if m["apiVersion"] == "ray.io/v1"]
    text = yaml.safe_dump([spec for _, spec in pods(tuple(jobs))])
    assert "helm.sh/chart" not in text
    cluster = _cluster(manifests)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        # KubeRay's head Service selects by a name of its own.
        assert "app.kubernetes.io/name" not in labels
        assert not any("version" in name for name in labels)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("serve.replicaz=3", "'replicaz'"),
        ("modells[0].ref=x", "'modells'"),
        ("image.repositry=x", "'repositry'"),
        ("workers[0].minimum=1", "'minimum'"),
        ("engine.kind=3", "/engine/kind"),
        ("serve.host=127.0.0.1", "'host'"),
        ("serve.drain_s=-1", "/serve/drain_s"),
        ("spread=always", "/spread"),
        ("upgrade.strategy=Rolling", "/upgrade/strategy"),
    ],
)
def test_a_typo_fails_with_the_name_of_its_key(wrong: str, said: str) -> None:
    done = template("raylm", "-f", MINIMAL, "--set", wrong)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    "wrong", ["config.train.stepz=3", "config.deploy.release=x", "untill=data"]
)
def test_a_typo_in_a_run_fails_too(wrong: str) -> None:
    values = CHARTS / "raylm-train/ci/minimal-values.yaml"
    done = template("raylm-train", "-f", values, "--set", wrong)
    assert done.returncode != 0
    assert f"'{wrong.split('=')[0].split('.')[-2 if 'deploy' in wrong else -1]}'" in done.stderr


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["models=null"], "models is empty"),
        (["api_keys.existing_secret=null"], "api_keys.existing_secret is needed"),
        (["store.claim=null"], "one of store.claim"),
        (["store.url=s3://a/b"], "one of store.claim"),
        (["models[0].ref=a", "models[0].group=gpu"], 'group "gpu" is none of workers: workers'),
        (["workers[0].min=5"], "min=5 is more than max=4"),
        (["serve.batches.max_files=3"], "serve.batches needs cache_claim"),
        (["upgrade.strategy=NewClusterWithIncrementalUpgrade"], "needs upgrade.incremental.gate"),
        (["ingress.enabled=true"], "ingress.enabled needs ingress.host"),
        (["http_route.enabled=true"], "http_route.enabled needs http_route.parents"),
        (["priority.create=true"], "priority.create needs priority.class_name"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(sets: list[str], said: str) -> None:
    options = [word for text in sets for word in ("--set", text)]
    done = template("raylm", "-f", MINIMAL, *options)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_name_that_kuberay_would_refuse_is_refused_first() -> None:
    assert "40 characters" in template("raylm", "-f", MINIMAL, name="a" * 41).stderr
    assert template("raylm", "-f", MINIMAL, name="a" * 40).returncode == 0


# Serving --------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["minimal", "full", "object-store", "incremental", "gpu"])
def test_the_application_takes_its_arguments(values: str) -> None:
    config = serve_config(serves(values))
    assert config["http_options"]["port"] == 8000
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert (module, attribute) == ("raylm.serve.kube", "app")
    args = AppArgs.model_validate(application["args"])
    assert args.serve.host == "0.0.0.0" and args.serve.gateways == 2
    assert args.serve.api_keys == "/etc/raylm/keys/keys"
    assert args.surge_percent > 0


def test_a_chart_adds_nothing_to_the_defaults_of_serving() -> None:
    args = AppArgs.model_validate(serve_config(serves())["applications"][0]["args"])
    own = {"host": "0.0.0.0", "gateways": 2, "api_keys": "/etc/raylm/keys/keys"}
    assert args.serve == RunConfig().serve.model_copy(update=own)
    assert args.engine == RunConfig().engine


def test_variants_have_worker_groups_of_their_own() -> None:
    manifests = serves("gpu")
    models = serve_config(manifests)["applications"][0]["args"]["models"]
    assert [m["labels"] for m in models] == [{"raylm-group": "gpu"}, {"raylm-group": "cpu"}]
    groups = {g["groupName"]: g for g in _cluster(manifests)["workerGroupSpecs"]}
    assert groups["gpu"]["labels"] == {"raylm-group": "gpu"}
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["nodeSelector"] == {"accelerator": "nvidia"}
    # A group of which only the name is given has the defaults of one.
    assert (groups["cpu"]["minReplicas"], groups["cpu"]["maxReplicas"]) == (2, 4)


def test_the_head_does_no_work_and_carries_no_traffic() -> None:
    service = one(serves(), "RayService")
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True


@pytest.mark.parametrize("drain_s", [0, 30, 299.5])
def test_running_answers_have_their_time_before_anything_ends_them(drain_s: float) -> None:
    manifests = serves("minimal", f"serve.drain_s={drain_s}")
    worker = _cluster(manifests)["workerGroupSpecs"][0]["template"]["spec"]
    container = worker["containers"][0]
    env = {e["name"]: e["value"] for e in container["env"]}
    # What `raylm.serve.build` gives Serve for a replica's end.
    serve_s = drain_s + 5
    ray_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert serve_s < ray_s
    assert sleep_s + ray_s < worker["terminationGracePeriodSeconds"]


def test_a_pod_is_ready_when_it_has_answered_with_a_token() -> None:
    worker = _cluster(serves())["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    probe = worker["readinessProbe"]
    command = probe["exec"]["command"]
    assert command[:3] == ["python", "-m", "raylm.deploy.kubernetes.probe"]
    (limit,) = (c for c in command if c.startswith("--timeout-s="))
    assert float(limit.partition("=")[2]) < probe["timeoutSeconds"]
    # Liveness is KubeRay's: the raylet, not the model.
    assert "livenessProbe" not in worker
    mounts = {m["name"]: m["mountPath"] for m in worker["volumeMounts"]}
    assert mounts["client"] == "/etc/raylm/client"


def test_pods_follow_the_load_by_the_autoscaler_alone() -> None:
    cluster = _cluster(serves("full"))
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    # A number of replicas here would be put back by every upgrade, and by Argo CD.
    assert not any("replicas" in g for g in groups.values())
    assert groups["large"]["idleTimeoutSeconds"] == 600
    assert groups["large"]["minReplicas"] == 0
    assert "idleTimeoutSeconds" not in groups["small"]


def test_without_an_autoscaler_the_number_is_fixed() -> None:
    cluster = _cluster(serves("object-store"))
    assert cluster["enableInTreeAutoscaling"] is False
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"] == "demo"


def test_the_head_keeps_its_state_in_the_included_redis() -> None:
    manifests = serves()
    options = _cluster(manifests)["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "demo-redis:6379"
    ref = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    secret = one(manifests, "Secret", ref["name"])
    assert ref["key"] in secret["data"]
    redis = one(manifests, "StatefulSet")["spec"]
    selector = one(manifests, "Service", "demo-redis")["spec"]["selector"]
    assert selector.items() <= redis["template"]["metadata"]["labels"].items()
    assert "volumeClaimTemplates" not in redis
    claims = one(serves("incremental"), "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claims[0]["spec"]["storageClassName"] == "fast"


def test_an_existing_redis_brings_none_along() -> None:
    manifests = serves("full")
    options = _cluster(manifests)["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis.example:6379"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "redis"
    assert not [m for m in manifests if m["kind"] in ("StatefulSet", "Secret")]
    assert "gcsFaultToleranceOptions" not in _cluster(serves("object-store"))


def test_the_endpoint_has_the_name_of_the_release() -> None:
    service = one(serves("full"), "RayService")["spec"]["serveService"]
    assert service["metadata"]["name"] == "demo"
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, 8000)
    pods_service = one(serves("full"), "Service", "demo-pods")
    assert pods_service["spec"]["clusterIP"] == "None"
    backend = one(serves("full"), "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert backend == {"service": {"name": "demo", "port": {"number": 80}}}
    route = one(serves("full"), "HTTPRoute")["spec"]
    assert route["rules"][0]["backendRefs"] == [{"name": "demo", "port": 80}]


@pytest.mark.parametrize("values", ["minimal", "full", "incremental"])
def test_services_and_budgets_select_the_pods_they_mean(values: str) -> None:
    manifests = serves(values)
    cluster = _cluster(manifests)
    head = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    # KubeRay puts the group's Ray labels on its pods, too.
    workers = [
        g["template"]["metadata"]["labels"] | g["labels"] for g in cluster["workerGroupSpecs"]
    ]
    endpoint = one(manifests, "Service", "demo-pods")["spec"]["selector"]
    budget = one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    policy = one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for labels in workers:
        assert endpoint.items() <= labels.items()
        assert budget.items() <= labels.items()
        assert policy.items() <= labels.items()
    assert not endpoint.items() <= head.items()
    assert policy.items() <= head.items()
    for group, labels in zip(cluster["workerGroupSpecs"], workers, strict=True):
        (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("workers", "left"),
    [('[{"name":"a"}]', 1), ('[{"name":"a","min":1}]', 0), ('[{"name":"a","min":0}]', 0),
     ('[{"name":"a","min":3},{"name":"b"}]', 4)],
)  # fmt: skip
def test_a_drain_leaves_all_but_one_of_the_workers_that_are_always_there(
    workers: str, left: int
) -> None:
    done = template("raylm", "-f", MINIMAL, "--set-json", f"workers={workers}")
    manifests = tuple(filter(None, yaml.safe_load_all(done.stdout)))
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    # maxUnavailable is not for pods of a RayCluster, which has no scale that Kubernetes reads.
    assert budget.keys() == {"minAvailable", "selector", "unhealthyPodEvictionPolicy"}
    assert budget["minAvailable"] == left


def test_from_outside_the_release_only_the_gateway_is_open() -> None:
    policy = one(serves(), "NetworkPolicy")["spec"]
    by_port: dict[int, list[Any]] = {}
    for rule in policy["ingress"]:
        for port in rule.get("ports", []):
            by_port.setdefault(port["port"], []).append(rule.get("from"))
    assert set(by_port) == {8000, 8080, 8265, 52365}
    assert None in by_port[8000], "everybody"
    operator = {"app.kubernetes.io/component": "kuberay-operator"}
    for port in (8265, 52365):
        (peers,) = by_port[port]
        assert [p["podSelector"]["matchLabels"] for p in peers] == [operator]
    # Ports of all kinds are for the release's own pods.
    anything = [rule for rule in policy["ingress"] if "ports" not in rule]
    assert [list(rule["from"][0]) for rule in anything] == [["podSelector"]]
    own = anything[0]["from"][0]["podSelector"]["matchLabels"]
    assert own["app.kubernetes.io/instance"] == "demo"


def test_clients_can_be_named() -> None:
    policy = one(serves("full"), "NetworkPolicy")["spec"]
    for rule in policy["ingress"]:
        assert rule.get("from"), "nothing is open to everybody"


def test_models_of_an_object_store_are_verified_before_ray_starts() -> None:
    cluster = _cluster(serves("object-store"))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        (fetch,) = spec["initContainers"]
        assert fetch["command"] == ["raylm", "models", "verify"]
        assert fetch["args"] == ["--store=s3://models/team-a", "demo-int8"]
        for container in (fetch, spec["containers"][0]):
            assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_a_change_of_models_is_none_of_pods() -> None:
    before = _cluster(serves())
    after = _cluster(
        serves("minimal", "models[0].ref=other", "serve.replicas=3", "engine.kv_cache=u8")
    )
    assert before == after
    changed = serve_config(serves("minimal", "models[0].ref=other"))
    assert changed["applications"][0]["args"]["models"] == [{"ref": "other"}]


def test_an_incremental_upgrade_has_its_options() -> None:
    spec = one(serves("incremental"), "RayService")["spec"]
    assert spec["upgradeStrategy"]["clusterUpgradeOptions"] == {
        "gatewayClassName": "istio",
        "maxSurgePercent": 100,
        "stepSizePercent": 20,
        "intervalSeconds": 30,
    }
    # KubeRay names the Services of two clusters after them.
    assert "serveService" not in spec


def test_tokens_of_ray_come_from_a_secret_or_from_kuberay() -> None:
    assert _cluster(serves())["authOptions"] == {"mode": "token"}
    given = _cluster(serves("full"))["authOptions"]
    assert given == {"mode": "token", "secretName": "ray-token"}


@pytest.mark.parametrize(("cpu", "whole"), [("2", 2), ("3500m", 4)])
def test_threads_follow_the_size_of_a_worker(cpu: str, whole: int) -> None:
    sets = [f"workers[0].name=w,workers[0].resources.limits.cpu={cpu}"]
    args = serve_config(serves("minimal", *sets))["applications"][0]["args"]
    assert args["node_cpus"] == whole


def test_metrics_are_read_with_a_key_from_one_place() -> None:
    manifests = serves("full")
    monitor = one(manifests, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials == {"name": "raylm-keys", "key": "client-key"}
    selected = monitor["spec"]["selector"]["matchLabels"]
    services = [m for m in manifests if m["kind"] == "Service"]
    found = [s for s in services if selected.items() <= s["metadata"]["labels"].items()]
    assert [s["metadata"]["name"] for s in found] == ["demo-metrics"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_alerts_and_panels_ask_for_metrics_that_there_are() -> None:
    manifests = serves("full")
    rules = one(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    dashboard = one(manifests, "ConfigMap")["data"]["raylm-serving.json"]
    text = " ".join(rule["expr"] for rule in rules) + dashboard
    asked = set(re.findall(r"\braylm_\w+", text))
    assert len(asked) > 8
    source = (CHARTS.parent / "raylm/serve/metrics.py").read_text()
    known = set(re.findall(r'"(raylm_\w+)"', source))
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= known
    job = f'{{namespace="{NAMESPACE}",job="demo-metrics"'
    assert all(job in rule["expr"] for rule in rules)


def test_the_test_asks_through_the_service_with_the_clients_key() -> None:
    pod = one(serves("full"), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert "--url=http://demo:80" in container["args"]
    # No pod of the release by its labels: the Service must not lead to it.
    assert "app.kubernetes.io/instance" not in pod["metadata"]["labels"]


# Runs -----------------------------------------------------------------------------------


def test_a_run_is_the_one_that_was_given() -> None:
    manifests = trains("queue")
    text = one(manifests, "ConfigMap")["data"]["raylm.yaml"]
    config = RunConfig.model_validate(yaml.safe_load(text))
    assert (config.name, config.train.workers, config.train.zero) == ("team-a", 4, 2)
    assert config.store == "/var/lib/raylm/store"
    assert config.data.paths == ("/data/*.jsonl",)


def test_a_job_names_its_last_stage_and_leaves_the_address_to_ray() -> None:
    entrypoint = one(trains("queue"), "RayJob")["spec"]["entrypoint"]
    assert "--until train" in entrypoint and "--base-dir /data" in entrypoint
    assert "'exec python -m raylm run" in entrypoint
    assert "cluster.address=$RAY_ADDRESS" in entrypoint
    assert "--until" not in one(trains(), "RayJob")["spec"]["entrypoint"]


def test_a_failed_job_starts_again_and_a_queued_one_waits() -> None:
    spec = one(trains("queue"), "RayJob")["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (5, 86400)
    assert spec["suspend"] is True
    labels = one(trains("queue"), "RayJob")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team-a"
    assert one(trains(), "RayJob")["spec"]["suspend"] is False


def test_a_schedule_makes_jobs() -> None:
    spec = one(trains("schedule"), "RayCronJob")["spec"]
    assert spec["schedule"] == "0 2 * * *"
    assert "suspend" not in spec["jobTemplate"]
    cluster = spec["jobTemplate"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["workerGroupSpecs"][0]["maxReplicas"] == 8


def test_all_pods_of_a_run_write_to_one_store() -> None:
    cluster = _cluster(trains("queue"))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        mounts = {m["name"]: m for m in container["volumeMounts"]}
        assert mounts["store"]["mountPath"] == "/var/lib/raylm/store"
        assert "readOnly" not in mounts["store"]
        assert mounts["data"]["readOnly"] is True
        env = {e["name"]: e["value"] for e in container["env"]}
        assert env["RAYLM_STORE"] == "/var/lib/raylm/store"
        assert env["RAY_TRAIN_V2_ENABLED"] == "1"
        assert math.isclose(float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]), 90)


def _cluster(manifests: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    (found,) = (m for m in manifests if m["apiVersion"] == "ray.io/v1")
    spec = found["spec"]
    spec = spec.get("jobTemplate", spec)
    return dict(spec.get("rayClusterConfig") or spec["rayClusterSpec"])
