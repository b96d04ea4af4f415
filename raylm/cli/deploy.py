"""raylm deploy render|install|status|upgrade|rollback|uninstall|bundle|load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.bundle import Folder, bundle, load, read_bundle
from raylm.cli.options import Config, Output, Sets, read_config
from raylm.cli.output import emit, say
from raylm.cli.progress import progress
from raylm.errors import ConfigError

if TYPE_CHECKING:
    from raylm.config.run import RunConfig
    from raylm.deploy.kubernetes.client import Client
    from raylm.deploy.kubernetes.state import ReleaseState
    from raylm.deploy.kubernetes.values import Chart

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="A served model, or a run, on Kubernetes: releases of raylm's Helm charts.",
)
app.command()(bundle)
app.command()(load)
Context = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME",
        help="Context of the kubeconfig. [default: the current one]",
        show_default=False,
    ),
]
Train = Annotated[
    bool, typer.Option("--train", help="The run (chart raylm-train), not the served model.")
]
Wait = Annotated[
    float,
    typer.Option("--wait-s", min=0, help="Seconds to wait until it answers; 0 does not wait."),
]


@app.command()
def render(
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    only_values: Annotated[
        bool, typer.Option("--values", help="Only the chart's values; needs no Helm.")
    ] = False,
    output: Output = "text",
) -> None:
    """The chart's values and the manifests; asks no cluster, and changes nothing."""
    import yaml

    chart, name, values, client, _ = _release(config, sets, train, None, None)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if only_values:
        emit(values, text, output)
        return
    from raylm.deploy.kubernetes.release import render as manifests_of

    manifests = manifests_of(client, chart, name, values)
    documents = [found for found in yaml.safe_load_all(manifests) if found is not None]
    shown = "\n".join(f"# {line}".rstrip() for line in [f"values of {chart}:", *text.splitlines()])
    data = {"chart": chart, "release": name, "values": values, "manifests": documents}
    emit(data, f"{shown}\n{manifests}", output)


@app.command()
def install(
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    folder: Folder = None,
    wait_s: Wait = 600.0,
    context: Context = None,
    output: Output = "text",
) -> None:
    """Make a release, and wait until it answers; what it needs is looked at first."""
    chart, name, values, client, package = _release(config, sets, train, context, folder)
    from raylm.deploy.kubernetes import release

    release.install(client, chart, name, values, package=package)
    _follow(client, chart, name, wait_s, output)


@app.command()
def upgrade(
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    folder: Folder = None,
    wait_s: Wait = 600.0,
    context: Context = None,
    output: Output = "text",
) -> None:
    """Change a release to what the configuration says; running answers are finished."""
    chart, name, values, client, package = _release(config, sets, train, context, folder)
    from raylm.deploy.kubernetes import release

    release.upgrade(client, chart, name, values, package=package)
    _follow(client, chart, name, wait_s, output, settled_s=release.SETTLED_S)


@app.command()
def rollback(
    revision: Annotated[
        int | None,
        typer.Argument(help="Revision of the release. [default: the one before]",
                       show_default=False),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    wait_s: Wait = 600.0,
    context: Context = None,
    output: Output = "text",
) -> None:  # fmt: skip
    """Go back to an earlier revision of a release."""
    loaded = read_config(config, sets)
    client = _client(loaded.config, context)
    from raylm.deploy.kubernetes import release

    name = release_name(loaded.config, train)
    release.rollback(client, name, revision)
    chart: Chart = "raylm-train" if train else "raylm"
    _follow(client, chart, name, wait_s, output, settled_s=release.SETTLED_S)


@app.command()
def status(
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    context: Context = None,
    output: Output = "text",
) -> None:
    """What a release is doing, and why it does not answer if it does not."""
    loaded = read_config(config, sets)
    from raylm.deploy.kubernetes import release

    seen = release.status(_client(loaded.config, context), release_name(loaded.config, train))
    emit(seen.to_dict(), _text(seen), output)


@app.command()
def uninstall(
    config: Config = None,
    sets: Sets = None,
    train: Train = False,
    context: Context = None,
    output: Output = "text",
) -> None:
    """Remove a release, and wait until its pods are gone; claims and secrets stay."""
    loaded = read_config(config, sets)
    from raylm.deploy.kubernetes import release

    name = release_name(loaded.config, train)
    with progress() as report:
        release.uninstall(_client(loaded.config, context), name, report=report)
    emit({"release": name, "removed": True}, f"{name} is gone", output)


def release_name(config: RunConfig, train: bool) -> str:
    """The name of a configuration's release: as it says, or the run's, as Kubernetes takes it."""
    name = config.deploy.release or re.sub(r"[^a-z0-9-]+", "-", config.name)
    if not name[0].isalpha():
        name = f"run-{name}"
    end = "-train" if train else ""
    return name[: 40 - len(end)].rstrip("-") + end


def _release(
    config: str | None,
    sets: list[str] | None,
    train: bool,
    context: str | None,
    folder: Path | None,
) -> tuple[Chart, str, dict[str, Any], Client, Path | None]:
    chart: Chart = "raylm-train" if train else "raylm"
    package = None
    if folder is None:
        loaded = read_config(config, sets)
    else:
        if config is not None:
            raise ConfigError(
                "--bundle has a configuration of its own; -c goes without it", code="config-twice"
            )
        found, loaded = read_bundle(folder, sets)
        package = found.chart(chart)
    from raylm.deploy.kubernetes.values import chart_values, train_values

    values = (train_values if train else chart_values)(loaded.config)
    name = release_name(loaded.config, train)
    return chart, name, values, _client(loaded.config, context), package


def _client(config: RunConfig, context: str | None) -> Client:
    from raylm.deploy.kubernetes.client import Client

    return Client(context=context, namespace=config.deploy.namespace)


def _follow(
    client: Client, chart: Chart, name: str, wait_s: float, output: str, settled_s: float = 0.0
) -> None:
    from raylm.deploy.kubernetes import release

    if chart == "raylm" and wait_s > 0:
        with progress() as report:
            seen = release.wait_ready(client, name, wait_s, settled_s=settled_s, report=report)
    else:
        seen = release.status(client, name)
        say("`raylm deploy status` says how it goes")
    emit(seen.to_dict(), _text(seen), output)


def _text(seen: ReleaseState) -> str:
    lines = [
        f"release   {seen.name} in {seen.namespace}, revision {seen.revision} of {seen.chart}",
        f"state     {seen.state}",
        f"pods      {seen.pods_ready} of {seen.pods} ready",
    ]
    return "\n".join([*lines, *(f"cause     {cause}" for cause in seen.causes)])
