from typing import Any

import pytest

from raylm.deploy.kubernetes.state import causes, is_ready, job_state, service_state


def condition(kind: str, status: bool, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": str(status), "reason": reason, "message": message}


def application(status: str, message: str = "", **deployments: str) -> dict[str, Any]:
    named = {n: {"status": "UNHEALTHY", "message": m} for n, m in deployments.items()}
    found = {"status": status, "message": message, "serveDeploymentStatuses": named}
    return {"applicationStatuses": {"raylm": found}}


READY = condition("Ready", True)
NO_MODEL = (
    "Deploying app 'raylm' failed with exception:\nTraceback (most recent call last):\n"
    "RuntimeError: raylm: cannot start: ArtifactError[artifact-not-found] there is no model 'x' "
    "in /tmp/raylm/store\n"
)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "starting"),
        ({"conditions": [READY]}, "ready"),
        ({"conditions": [READY, condition("UpgradeInProgress", True)]}, "upgrading"),
        ({"conditions": [READY, condition("UpgradeInProgress", False)]}, "ready"),
        ({"conditions": [condition("Ready", False, "Initializing")]}, "starting"),
        ({"conditions": [condition("Ready", False, "InitializingTimeout")]}, "failed"),
        ({"conditions": [condition("Ready", False, "ValidationFailed")]}, "failed"),
        ({"pendingServiceStatus": application("DEPLOY_FAILED")}, "failed"),
        (
            {"conditions": [READY], "activeServiceStatus": application("DEPLOY_FAILED")},
            "failed",
        ),
        ({"conditions": [READY], "activeServiceStatus": application("DEPLOYING")}, "upgrading"),
        ({"conditions": [READY], "activeServiceStatus": application("RUNNING")}, "ready"),
        ({"conditions": [condition("Ready", False)], **application("DEPLOYING")}, "starting"),
    ],
)
def test_the_state_of_a_served_release(status: dict[str, Any], state: str) -> None:
    assert service_state(status) == state


def test_a_change_that_the_operator_has_not_seen_is_not_ready() -> None:
    broken = application("DEPLOY_FAILED")
    status = {"conditions": [READY], "observedGeneration": 2, "activeServiceStatus": broken}
    assert service_state(status, 3) == "upgrading"
    assert service_state(status, 2) == "failed"
    assert service_state({"conditions": [READY], "observedGeneration": 2}, 2) == "ready"


@pytest.mark.parametrize(
    ("deployment", "job", "state"),
    [
        ("", "", "starting"),
        ("Initializing", "", "starting"),
        ("Running", "RUNNING", "running"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Failed", "FAILED", "failed"),
        ("Failed", "", "failed"),
        ("Retrying", "FAILED", "starting"),
        ("Suspended", "", "suspended"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_the_state_of_a_run(deployment: str, job: str, state: str) -> None:
    assert job_state({"jobDeploymentStatus": deployment, "jobStatus": job}) == state


def test_the_cause_is_raylms_own_line_out_of_serves_traceback() -> None:
    status = {"activeServiceStatus": application("DEPLOY_FAILED", NO_MODEL)}
    assert causes(status, []) == ("there is no model 'x' in /tmp/raylm/store",)


def test_a_replica_that_does_not_start_says_why() -> None:
    text = "ray.exceptions: RuntimeError: raylm: cannot start: ModelError[unsafe-file] no pickles"
    status = {"pendingServiceStatus": application("DEPLOYING", engine=text)}
    assert causes(status, []) == ("no pickles",)


def test_what_serve_says_stands_where_raylm_says_nothing() -> None:
    status = {"activeServiceStatus": application("DEPLOY_FAILED", "a\n\nImportError: no raylm\n")}
    assert causes(status, []) == ("ImportError: no raylm",)


def pod(name: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "ray-worker", "state": state}


def test_pods_tell_of_images_nodes_and_ends() -> None:
    pods = [
        pod("a", containerStatuses=[waiting("ImagePullBackOff", 'image "raylm:x" not found')]),
        pod("b", conditions=[condition("PodScheduled", False, "", "0/2 nodes: cpu")]),
        pod(
            "c",
            initContainerStatuses=[{"name": "models", "state": {"terminated": {"exitCode": 3}}}],
        ),
        pod("d", containerStatuses=[waiting("ContainerCreating")]),
    ]
    assert causes({}, pods) == (
        'pod a, ray-worker: ImagePullBackOff: image "raylm:x" not found',
        "pod b has no node: 0/2 nodes: cpu",
        "pod c, models: ended with code 3",
    )


def test_the_same_is_said_once() -> None:
    status = {
        "activeServiceStatus": application("DEPLOY_FAILED", NO_MODEL),
        "pendingServiceStatus": application("DEPLOY_FAILED", NO_MODEL),
    }
    assert len(causes(status, [])) == 1


def test_a_failed_job_has_its_message() -> None:
    status = {"jobStatus": "FAILED", "message": "exit code 4"}
    assert causes(status, []) == ("exit code 4",)


def test_a_pod_is_ready_when_kubernetes_says_so() -> None:
    assert is_ready(pod("a", conditions=[condition("Ready", True)]))
    assert not is_ready(pod("a", conditions=[condition("Ready", False)]))
    assert not is_ready(pod("a"))
