"""raylm up|down|status|logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, open_store, read_config
from raylm.cli.output import emit, human_s, say, table
from raylm.cli.progress import progress
from raylm.errors import ConfigError

if TYPE_CHECKING:
    from raylm.deploy.status import ClusterStatus


def up(
    config: Config = None, sets: Sets = None, store: StorePlace = None, output: Output = "text"
) -> None:
    """Start a Ray cluster for this store on this machine; one that is up stays as it is."""
    loaded = read_config(config, sets)
    from raylm.deploy import cluster
    from raylm.store import Store

    if loaded.config.cluster.address is not None:
        raise ConfigError(
            f"cluster.address={loaded.config.cluster.address} is a cluster that is used as it is",
            code="cluster-not-ours",
            hint="leave cluster.address out to have raylm start one here",
        )
    with progress() as report:
        info = cluster.up(Store(store or loaded.config.store), loaded.config.cluster, report=report)
    text = f"Ray is up on {info.address}, dashboard {info.dashboard_url}\nend it: raylm down"
    emit(info.to_dict(), text, output)


def down(
    drain_s: Annotated[
        float, typer.Option("--drain-s", min=0, help="Seconds that running answers may take.")
    ] = 30.0,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Finish running answers, then end every process of this store's cluster."""
    opened = open_store(store, config)
    from raylm.deploy import cluster

    with progress() as report:
        stopped = cluster.down(opened, drain_s=drain_s, report=report)
    text = (
        f"ended {stopped.num_processes} processes in {human_s(stopped.seconds)}"
        if stopped.was_running
        else "nothing was running"
    )
    emit(stopped.to_dict(), text, output)


def status(config: Config = None, store: StorePlace = None, output: Output = "text") -> None:
    """The cluster, what is deployed on it, and where it answers."""
    opened = open_store(store, config)
    from raylm.deploy.status import status as look

    with progress() as report:
        found = look(opened, report=report)
    emit(found.to_dict(), _status_text(found), output)


def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            help="head, ray, serve, gateway, engine, train or workers. [default: all]",
            show_default=False,
        ),
    ] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines of each log.")] = 20,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """The last lines of the cluster's logs, the last written last; `-n 0` only their paths."""
    opened = open_store(store, config)
    from raylm.deploy.logs import find_logs, tail

    found = [{"path": str(path), "lines": tail(path, lines)} for path in find_logs(opened, source)]
    text = "\n".join(
        "\n".join([f"==> {log['path']} <==" if lines else str(log["path"]), *log["lines"]])
        for log in found
    )
    emit(found, text, output)
    if not found:
        say("there is nothing: no cluster is up for this store, or it has not logged that")


def _status_text(found: ClusterStatus) -> str:
    if not found.is_up:
        return "no cluster is up for this store; `raylm up` starts one"
    lines = [
        f"cluster    {found.address}, since {found.started}, {found.num_processes} processes",
        f"CPUs       {found.cpus_free:g} free of {found.cpus:g}",
        f"dashboard  {found.dashboard_url}",
    ]
    if found.endpoint:
        lines.append(f"endpoint   {found.endpoint.get('url')}")
        models = [
            (", ".join(each["names"]), each["digest"][:12])
            for each in found.endpoint.get("served", ())
        ]
        lines += ["", table(("model, by its names", "digest"), models)]
    if found.deployments:
        rows = [
            (d.name, d.state, " ".join(f"{n} {s}" for s, n in d.replicas.items()), d.message)
            for d in found.deployments
        ]
        lines += ["", table(("deployment", "state", "replicas", ""), rows)]
    else:
        lines.append("nothing is served; `raylm serve` does")
    if found.warnings:
        lines += ["", *(f"warning: {text}" for text in found.warnings)]
    return "\n".join(lines)
