"""Speak to the cluster as its administrator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from k8s.local import binaries
from k8s.local.command import run, succeeds
from k8s.local.layout import KUBECONFIG
from k8s.local.processes import wait_until
from raylm.errors import HostError

_PROBE_S = 10.0


def program() -> Path:
    """The kubectl of the cluster's version."""
    return binaries.folder(binaries.KUBERNETES) / "kubectl"


def kubectl(*words: str, text_in: str | None = None, timeout_s: float = 60.0) -> str:
    """Run kubectl; returns its stdout."""
    return run(
        program(), f"--kubeconfig={KUBECONFIG}", *words, text_in=text_in, timeout_s=timeout_s
    )


def api_is_ready() -> bool:
    """Whether the API server says so."""
    return succeeds(
        program(), f"--kubeconfig={KUBECONFIG}", "get", "--raw=/readyz", timeout_s=_PROBE_S
    )


def get(*words: str) -> Any:
    """Objects, as `kubectl get -o json` has them."""
    return json.loads(kubectl("get", *words, "-o", "json"))


def apply(*objects: dict[str, Any]) -> None:
    """Create objects or change them."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    kubectl("apply", "--server-side", "-f", "-", text_in=text)


def has_condition(found: dict[str, Any], kind: str) -> bool:
    """Whether a condition of an object is true."""
    conditions = found.get("status", {}).get("conditions", [])
    return any(item["type"] == kind and item["status"] == "True" for item in conditions)


def wait_for(what: Sequence[str], condition: str, timeout_s: float) -> None:
    """Return when an object's condition is true.

    Args:
        what: words for `kubectl get`, naming one object.

    Raises:
        HostError: it is not, in time; with the namespace's last events.
    """

    def probe() -> bool:
        return has_condition(get(*what), condition)

    try:
        wait_until(f"{' '.join(what)} {condition}", probe, timeout_s, poll_s=0.5)
    except HostError as error:
        raise HostError(f"{error.message}\n{_events(what)}", code=error.code) from error


def _events(what: Sequence[str]) -> str:
    named = [word for word in what if word.startswith("--namespace")]
    lines = kubectl("get", "events", "--sort-by=.lastTimestamp", *named).splitlines()
    return "\n".join(lines[-10:])
