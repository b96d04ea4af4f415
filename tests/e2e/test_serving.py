"""A served release on a real Kubernetes, with the real image, and what its clients get."""

from pathlib import Path

import pytest

from tests.e2e import served
from tests.e2e.deploy import deploy, status
from tests.e2e.models import NAME
from tests.e2e.place import Place

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


def test_the_official_client_gets_an_answer_and_a_stream_through_the_service(
    cluster: Place, release: str
) -> None:
    seen = served.ask(cluster, release)
    assert seen["models"][0] == NAME
    assert seen["tokens"] == 24
    assert seen["reason"] == "length"
    assert seen["pieces"] > 8
    assert seen["streamed"] == seen["whole"] != ""


def test_helm_test_passes(cluster: Place, release: str) -> None:
    said = cluster.client.helm("test", release, "--logs", timeout_s=180)
    assert "Phase:          Succeeded" in said
    assert f"{NAME}: '" in said


@pytest.mark.usefixtures("release")
def test_status_says_ready_and_a_second_install_is_refused(file: Path) -> None:
    found = status(file)
    assert (found["state"], found["causes"]) == ("ready", [])
    assert found["pods"] == found["pods_ready"] == 4
    done = deploy("install", "-c", file)
    assert done.returncode == 2
    assert "release-exists" in done.stderr
