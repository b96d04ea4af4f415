"""Helm alone with a values file: one pod and no Redis, which scales with the load."""

import time
from collections.abc import Iterator

import pytest
import yaml

from tests.e2e import served
from tests.e2e.load import Seen, under_load
from tests.e2e.models import Models
from tests.e2e.place import Place, stage, until
from tests.e2e.written import Starts
from tests.helm.charts import CHARTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]
_NAME = "plain"
_SCALE_S = 240.0
_REPLICAS = {
    "min": 1,
    "max": 3,
    # Of a model so small, hardly one answer is in the making at a time.
    "target_ongoing_requests": 0.05,
    "look_back_s": 5.0,
    "upscale_delay_s": 1.0,
    "downscale_delay_s": 5.0,
}


@pytest.fixture(scope="module")
def plain(
    cluster: Place, models: Models, starts: Starts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    values = served.values(cluster, models.new)
    values["fault_tolerance"] = {"enabled": False}
    values["workers"][0]["min"] = 1
    values["serve"] |= {"replicas": _REPLICAS, "gateways": 1}
    file = tmp_path_factory.mktemp("values") / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    start = time.time()
    with stage("helm install, until it answers"):
        cluster.client.helm("install", _NAME, str(CHARTS / "raylm"), "-f", str(file))
        phases, seen = served.watch_start(cluster, _NAME, start)
    assert seen["tokens"] == 24
    phases.show()
    starts["one pod, no Redis"] = phases
    yield _NAME
    cluster.client.helm("uninstall", _NAME, "--ignore-not-found")


def test_replicas_and_their_pods_follow_the_load_from_one_to_three_and_back(
    cluster: Place, plain: str, seen: list[Seen]
) -> None:
    def ready() -> int:
        slices = cluster.items("endpointslices", f"kubernetes.io/service-name={plain}")
        ends = [end for one in slices for end in one.get("endpoints") or []]
        return sum(bool(end["conditions"].get("ready")) for end in ends)

    def count(number: int) -> bool:
        return len(served.pods(cluster, plain, "worker")) == ready() == number

    assert count(1)
    with under_load(cluster, plain, "from one replica to three", seen, rate=4.0):
        until("three pods answer", lambda: count(3), _SCALE_S)
    assert seen[-1].num_failed == 0
    with under_load(cluster, plain, "from three replicas to one", seen, rate=0.2):
        until("one pod is left", lambda: count(1), _SCALE_S)
    assert seen[-1].num_failed == 0


def test_helm_uninstall_leaves_nothing(cluster: Place, plain: str) -> None:
    with stage("helm uninstall"):
        cluster.client.helm("uninstall", plain)
        until("nothing is left", lambda: not served.left_over(cluster, plain), 120)
