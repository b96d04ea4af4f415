"""A served release: its values, how it comes up, and what it answers to a client in the cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.models import NAME
from tests.e2e.place import CLIENT, NAMESPACE, SECRET, Place, say, until

READY_S = 300.0
_SMALL = {
    "requests": {"cpu": "300m", "memory": "1Gi"},
    "limits": {"cpu": 2, "memory": "3Gi"},
}

_ASK = """
import json, os, sys, time
from openai import OpenAI
url, model, until_s = sys.argv[1], sys.argv[2], time.time() + float(sys.argv[3])
key = open("/etc/raylm/key/client-key").read()
client = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=10)
ask = dict(model=model, prompt="Once upon a time", temperature=0, max_tokens=24,
           extra_body={"ignore_eos": True})
while True:
    try:
        stream = client.completions.create(stream=True, **ask)
        first = next(iter(stream))
        at = time.time()
        pieces = [first.choices[0].text, *(c.choices[0].text for c in stream if c.choices)]
        break
    except Exception as error:
        if time.time() > until_s:
            raise
        time.sleep(0.2)
whole = client.completions.create(**ask)
names = [m.id for m in client.models.list().data]
print(json.dumps({"first_token_at": at, "streamed": "".join(pieces), "pieces": len(pieces),
                  "whole": whole.choices[0].text, "reason": whole.choices[0].finish_reason,
                  "tokens": whole.usage.completion_tokens, "models": names}))
"""


def values(place: Place, ref: str) -> dict[str, Any]:
    """Values of the chart `raylm`: two engine replicas and two gateways, on two pods."""
    return {
        "image": {"repository": place.image.repository, "tag": place.image.tag},
        "store": {"claim": "models"},
        "api_keys": {"existing_secret": SECRET},
        "head": {"resources": _SMALL},
        "workers": [{"name": "workers", "min": 2, "max": 3, "resources": _SMALL}],
        "autoscaler": {
            "idle_timeout_s": 20,
            "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"},
                "limits": {"cpu": 1, "memory": "1Gi"},
            },
        },
        "fault_tolerance": {
            "redis": {
                "image": {"repository": place.redis.repository, "tag": place.redis.tag},
            },
        },
        "models": [{"ref": ref}],
        # A pod offers two CPUs: one engine each, and room for the gateways.
        "serve": {"replicas": 2, "gateways": 2, "cpus_per_replica": 1.25, "drain_s": 10.0},
    }


def config(place: Place, ref: str, folder: Path) -> Path:
    """The same as a raylm.yaml."""
    found = values(place, ref)
    serve = found.pop("serve") | {"models": [model["ref"] for model in found.pop("models")]}
    file = folder / "raylm.yaml"
    run = {"name": NAME, "serve": serve, "deploy": {"namespace": NAMESPACE, "serving": found}}
    file.write_text(yaml.safe_dump(run))
    return file


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each part of the way from `helm install` to the first token of a stream."""

    schedule_s: float
    """Until the head has a node: Helm, the operator, the scheduler."""
    image_s: float
    """Until the head's process runs; the image was on the node."""
    ray_s: float
    """Until Ray's head has taken the application from the operator."""
    load_s: float
    """Until the application runs: workers have joined, replicas have loaded the model."""
    first_token_s: float
    """Until a token has come through the Service: probes, endpoints."""

    @property
    def all_s(self) -> float:
        return sum(asdict(self).values())

    def show(self) -> None:
        for name, seconds in asdict(self).items():
            say(f"    {name.removesuffix('_s').replace('_', ' '):<20} {seconds:6.1f} s")
        say(f"    {'helm install to first token':<28} {self.all_s:6.1f} s")


def watch_start(place: Place, name: str, start: float) -> tuple[Phases, dict[str, Any]]:
    """Follow a release that was installed at a Unix time; with what the client saw."""
    head = f"ray.io/node-type=head,app.kubernetes.io/instance={name}"
    until("the head's container", lambda: _started_at(place, head), READY_S)
    pod = place.items("pods", head)[0]
    scheduled = _condition_at(pod, "PodScheduled")
    running = _started_at(place, head)
    until("the application at Ray's head", lambda: application(place, name), READY_S)
    taken = time.time()
    until(
        "the application runs",
        lambda: application(place, name).get("status") == "RUNNING",
        READY_S,
    )
    loaded = time.time()
    seen = ask(place, name, wait_s=READY_S)
    marks = [start, max(scheduled, start), running, taken, loaded, seen["first_token_at"]]
    return Phases(*(max(0.0, b - a) for a, b in pairwise(marks))), seen


def ask(place: Place, name: str, model: str = NAME, *, wait_s: float = 0.0) -> dict[str, Any]:
    """What the official client gets, from a pod, by the name of the Service."""
    url = f"http://{name}.{NAMESPACE}.svc:8000/v1"
    words = (url, model, str(wait_s))
    return dict(json.loads(place.python(CLIENT, _ASK, *words, timeout_s=wait_s + 60)))


def application(place: Place, name: str) -> dict[str, Any]:
    """The application's status in the RayService; empty where there is none."""
    status = (place.get(f"rayservice/{name}") or {}).get("status") or {}
    for which in ("pendingServiceStatus", "activeServiceStatus"):
        found = (status.get(which) or {}).get("applicationStatuses") or {}
        if found:
            return dict(next(iter(found.values())))
    return {}


def pods(place: Place, name: str, role: str) -> list[str]:
    """Names of the pods of a role that are not ending."""
    selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component={role}"
    found = place.items("pods", selector)
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def left_over(place: Place, name: str) -> list[str]:
    """What there is of a release."""
    kinds = (
        "pods", "services", "secrets", "configmaps", "statefulsets", "jobs", "serviceaccounts",
        "roles", "rolebindings", "networkpolicies", "poddisruptionbudgets", "rayclusters",
        "rayservices", "rayjobs", "endpointslices",
    )  # fmt: skip
    found = place.get(",".join(kinds))
    names = [f"{one['kind']}/{one['metadata']['name']}" for one in found["items"]] if found else []
    return [one for one in names if one.partition("/")[2].startswith(name)]


def _started_at(place: Place, selector: str) -> float:
    for pod in place.items("pods", selector):
        statuses: Sequence[dict[str, Any]] = pod["status"].get("containerStatuses", [])
        for container in statuses:
            running = container["state"].get("running")
            if running and container["name"].startswith("ray-"):
                return _unix(running["startedAt"])
    return 0.0


def _condition_at(pod: dict[str, Any], kind: str) -> float:
    (found,) = [c for c in pod["status"]["conditions"] if c["type"] == kind]
    return _unix(found["lastTransitionTime"])


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
