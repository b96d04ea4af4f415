"""install, upgrade, rollback, uninstall, status: a release of one of the charts in a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml

from raylm.deploy.kubernetes.charts import chart_folder
from raylm.deploy.kubernetes.client import Client
from raylm.deploy.kubernetes.preflight import preflight
from raylm.deploy.kubernetes.state import ReleaseState, causes, is_ready, job_state, service_state
from raylm.deploy.kubernetes.values import CHARTS, Chart
from raylm.errors import ConfigError, HostError, RaylmError
from raylm.progress import Report, Tick, silent

Values = Mapping[str, Any]
POLL_S = 2.0
SETTLED_S = 6.0
"""KubeRay looks every two seconds, and tells a change in the look after the one that made it."""
GONE_S = 420.0
"""KubeRay gives the cleaning of Redis five minutes."""
_RESOURCES: dict[Chart, tuple[str, ...]] = {
    "raylm": ("rayservice",),
    "raylm-train": ("rayjob", "raycronjob"),
}


def render(client: Client, chart: Chart, name: str, values: Values) -> str:
    """The manifests, without asking any cluster.

    Raises:
        HostError: Helm is missing, or the chart refuses the values.
    """
    return client.helm("template", name, str(chart_folder(chart)), "-f", "-", stdin=_yaml(values))


def install(
    client: Client, chart: Chart, name: str, values: Values, *, package: Path | None = None
) -> None:
    """Make a release; where that fails, nothing of it stays. `package` is a chart of a bundle.

    Raises:
        ConfigError, HostError: something is missing, or there is a release of that name.
    """
    preflight(client, chart, values)
    if _release(client, name) is not None:
        raise ConfigError(
            f"there is a release {name} already",
            code="release-exists",
            hint="`raylm deploy upgrade` changes it",
        )
    try:
        place = str(package or chart_folder(chart))
        client.helm("install", name, place, "-f", "-", stdin=_yaml(values))
    except RaylmError:
        with suppress(RaylmError):
            client.helm("uninstall", name, "--ignore-not-found")
        raise


def upgrade(
    client: Client, chart: Chart, name: str, values: Values, *, package: Path | None = None
) -> None:
    """Change a release; where that fails, it is as it was. `package` is a chart of a bundle.

    Raises:
        ConfigError, HostError: something is missing, or there is no such release.
    """
    preflight(client, chart, values)
    _need_release(client, name)
    place = str(package or chart_folder(chart))
    client.helm("upgrade", name, place, "--reset-values", "-f", "-", stdin=_yaml(values))


def rollback(client: Client, name: str, revision: int | None) -> None:
    """Go back to a revision; None is the one before.

    Raises:
        ConfigError, HostError: there is no such release or revision.
    """
    _need_release(client, name)
    client.helm("rollback", name, *([] if revision is None else [str(revision)]))


def uninstall(
    client: Client, name: str, *, timeout_s: float = GONE_S, report: Report = silent
) -> None:
    """Remove a release and wait until its pods are gone.

    What Ray made goes first, while the Redis that it cleans is still there.

    Raises:
        ConfigError: there is no such release.
        HostError: something of it does not go in time.
    """
    chart = _chart(_need_release(client, name))
    deadline_s = time.monotonic() + timeout_s
    for kind in _RESOURCES[chart]:
        with suppress(HostError):  # a kind that this cluster does not have
            client.kubectl("delete", f"{kind}.ray.io/{name}", "--ignore-not-found", "--wait=false")
    _wait_gone(client, name, deadline_s, report, "component in (head, worker, submitter)")
    client.helm("uninstall", name)
    _wait_gone(client, name, deadline_s, report, None)


def _wait_gone(
    client: Client, name: str, deadline_s: float, report: Report, only: str | None
) -> None:
    selector = f"app.kubernetes.io/instance={name}"
    selector += f",app.kubernetes.io/{only}" if only else ""
    while True:
        found = client.get("pods", "-l", selector)
        left = len(found["items"]) if found else 0
        if left == 0:
            return
        if time.monotonic() > deadline_s:
            raise HostError(f"{left} pods of {name} do not end", code="release-left-over")
        report(Tick("deploy", f"waiting for {left} pods to end"))
        time.sleep(POLL_S)


def status(client: Client, name: str) -> ReleaseState:
    """What a release is doing.

    Raises:
        ConfigError: there is none.
        HostError: the cluster cannot be asked.
    """
    release = _need_release(client, name)
    chart = _chart(release)
    found = client.get("pods", "-l", f"app.kubernetes.io/instance={name}")
    pods = found["items"] if found else []
    kind = _RESOURCES[chart][0]
    resource = client.get(f"{kind}.ray.io/{name}") or {}
    seen = resource.get("status") or {}
    generation = resource.get("metadata", {}).get("generation", 0)
    return ReleaseState(
        name=name,
        namespace=str(release["namespace"]),
        revision=int(release["revision"]),
        chart=chart,
        state=service_state(seen, generation) if chart == "raylm" else job_state(seen),
        pods_ready=sum(is_ready(pod) for pod in pods),
        pods=len(pods),
        causes=causes(seen, pods),
    )


def wait_ready(
    client: Client,
    name: str,
    timeout_s: float,
    *,
    settled_s: float = 0.0,
    report: Report = silent,
) -> ReleaseState:
    """Wait until a served release answers.

    Args:
        settled_s: for so long it must be seen to be ready, or to have failed. After a change the
            operator first tells how it was before.

    Raises:
        HostError: it does not in time, or never will; with the most telling cause.
    """
    since_s = time.monotonic()
    deadline_s = since_s + timeout_s
    last = ""
    while True:
        seen = status(client, name)
        if seen.state != last:
            last, since_s = seen.state, time.monotonic()
        is_settled = time.monotonic() - since_s >= settled_s
        if seen.state == "ready" and is_settled:
            return seen
        cause = seen.causes[0] if seen.causes else f"{seen.pods_ready} of {seen.pods} pods ready"
        has_failed = seen.state == "failed" and is_settled
        if has_failed or time.monotonic() > deadline_s:
            late = "" if has_failed else f" after {timeout_s:.0f} s"
            raise HostError(
                f"{name} is {seen.state}{late}: {cause}",
                code="release-not-ready",
                hint=f"`raylm deploy status` looks again; `kubectl describe rayservice {name}`",
            )
        report(Tick("deploy", f"{seen.state}: {cause}"))
        time.sleep(POLL_S)


def _release(client: Client, name: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(client.helm("get", "metadata", name, "-o", "json")))
    except HostError as error:
        if "not found" in error.message:
            return None
        raise


def _need_release(client: Client, name: str) -> dict[str, Any]:
    found = _release(client, name)
    if found is None:
        raise ConfigError(
            f"there is no release {name}"
            + (f" in the namespace {client.namespace}" if client.namespace else ""),
            code="release-missing",
            hint="`raylm deploy install` makes one; `helm list -A` shows all",
        )
    return found


def _chart(release: Mapping[str, Any]) -> Chart:
    chart = release["chart"]
    if chart not in CHARTS:
        raise ConfigError(
            f"the release {release['name']} is of the chart {chart}, not of raylm's",
            code="release-foreign",
        )
    return cast(Chart, chart)


def _yaml(values: Values) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
