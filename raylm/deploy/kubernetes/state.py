"""ReleaseState: what a release is doing, and why it does not serve if it does not. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_CAUSE = re.compile(r"raylm: cannot start: (\w+)\[([a-z0-9_-]+)\] ([^\n]+)")
_NEVER = ("InitializingTimeout", "ValidationFailed")
"""Reasons of KubeRay for which a RayService is not tried any more."""
_WAITS = frozenset({"PodInitializing", "ContainerCreating"})


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """A release in a cluster."""

    name: str
    namespace: str
    revision: int
    chart: str
    state: str
    """ready, upgrading, starting or failed; of a run what its job is: running, succeeded, failed,
    suspended or starting."""
    pods_ready: int
    pods: int
    causes: tuple[str, ...]
    """Why it is not as it should be, the most telling first."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def service_state(status: Mapping[str, Any], generation: int = 0) -> str:
    """ready, upgrading, starting or failed, of a RayService's status.

    Args:
        generation: of its metadata; the operator has not looked yet where its status is of an
            earlier one.
    """
    conditions = {c["type"]: c for c in status.get("conditions", [])}

    def holds(kind: str) -> bool:
        return bool(conditions.get(kind, {}).get("status") == "True")

    if holds("UpgradeInProgress") or holds("RollbackInProgress"):
        return "upgrading"
    if holds("Ready") and status.get("observedGeneration", generation) < generation:
        return "upgrading"
    broken = any(a.get("status") == "DEPLOY_FAILED" for a in _applications(status))
    if holds("Ready"):
        # The old model goes on, and the new one does not come up.
        moves = any(a.get("status") == "DEPLOYING" for a in _applications(status))
        return "failed" if broken else "upgrading" if moves else "ready"
    reason = conditions.get("Ready", {}).get("reason")
    return (
        "failed" if broken or reason in ("InitializingTimeout", "ValidationFailed") else "starting"
    )


def job_state(status: Mapping[str, Any]) -> str:
    """running, succeeded, failed, suspended or starting, of a RayJob's status."""
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment in ("Failed", "ValidationFailed") or job == "FAILED":
        return "starting" if deployment == "Retrying" else "failed"
    if deployment in ("Suspended", "Suspending"):
        return "suspended"
    return {"SUCCEEDED": "succeeded", "RUNNING": "running"}.get(job, "starting")


def causes(status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Why something does not come up: raylm's own words, then what pods wait for, then the rest."""
    texts = list(_messages(status))
    own = [match[3].strip() for text in texts if (match := _CAUSE.search(text))]
    waiting = [why for pod in pods for why in _pod_causes(pod)]
    failed = [
        last
        for application in _applications(status)
        if application.get("status") in ("DEPLOY_FAILED", "UNHEALTHY")
        for last in str(application.get("message", "")).strip().splitlines()[-1:]
    ]
    bad = [
        c["message"]
        for c in status.get("conditions", [])
        if c["type"] == "Ready" and c["status"] == "False"
        and c.get("reason") in _NEVER
    ]  # fmt: skip
    job = str(status.get("message", "")) if status.get("jobStatus") == "FAILED" else ""
    found = [*own, *waiting, *bad, *([] if own else failed), *filter(None, [job])]
    return tuple(dict.fromkeys(found))


def _applications(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for which in ("activeServiceStatus", "pendingServiceStatus"):
        yield from (status.get(which) or {}).get("applicationStatuses", {}).values()


def _messages(status: Mapping[str, Any]) -> Iterator[str]:
    for application in _applications(status):
        yield str(application.get("message", ""))
        for deployment in application.get("serveDeploymentStatuses", {}).values():
            yield str(deployment.get("message", ""))


def _pod_causes(pod: Mapping[str, Any]) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"pod {name} has no node: {condition.get('message', '')}"
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    for container in containers:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting and waiting.get("reason") not in _WAITS:
            text = str(waiting.get("message", "")).strip()
            yield f"pod {name}, {container['name']}: {waiting.get('reason')}: {text}".rstrip(": ")
        ended = container.get("state", {}).get("terminated", {})
        if ended.get("exitCode"):
            yield f"pod {name}, {container['name']}: ended with code {ended['exitCode']}"


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether Kubernetes counts a pod as ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
