"""raylm serve: models behind an endpoint, for as long as the command runs or longer."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, say
from raylm.cli.progress import progress
from raylm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from raylm.config.engine import EngineConfig
    from raylm.config.load import Loaded
    from raylm.config.serve import VariantsConfig
    from raylm.progress import Report
    from raylm.serve.catalog import ServedModel
    from raylm.serve.endpoint import Endpoint
    from raylm.store import Store

_LOOK_S = 2.0


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Artifacts (name, digest, or its start) or Hugging Face folders. "
            "[default: serve.models, else the last model of the run]",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on. [default: serve.host]", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port, 0 for a free one. [default: serve.port]", show_default=False),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Engine replicas of each model. [default: serve.replicas]", show_default=False
        ),
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Key store, or file with one key a line. [default: serve.api_keys, else what "
            "`raylm keys` made in the store]",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when it answers; `raylm down` ends it.")
    ] = False,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Put models behind an OpenAI-compatible endpoint, starting a cluster where none is up.

    Without --detach it stays until Ctrl-C, finishes running answers, and ends what it started.
    """
    flags = {"host": host, "port": port, "replicas": replicas, "api_keys": api_keys}
    overrides = [f"serve.{k}={json.dumps(v)}" for k, v in flags.items() if v is not None]
    loaded = read_config(config, [*(sets or []), *overrides])
    from raylm.store import Store

    opened = Store(store or loaded.config.store)
    named: Sequence[str | VariantsConfig] = models or loaded.config.serve.models
    with progress() as report:
        from raylm.deploy.cluster import down, ensure_up
        from raylm.serve.resolve import resolve, with_draft

        # What cannot be served is told before a cluster is started for it.
        named = named or [_last_model(opened, loaded)]
        chosen = resolve(named, opened, loaded.base_dir, report)
        engine = with_draft(loaded.config.engine, opened, loaded.base_dir)
        started_here = ensure_up(opened, loaded.config.cluster, report=report)
        try:
            _serve(opened, loaded, chosen, engine, detach, output, report)
        except BaseException:
            # Ctrl-C in the foreground, too: what this command started ends with it.
            if started_here:
                down(opened, drain_s=0, report=report)
            raise


def _serve(
    store: Store,
    loaded: Loaded,
    models: Sequence[ServedModel],
    engine: EngineConfig,
    detach: bool,
    output: str,
    report: Report,
) -> None:
    from raylm.deploy.connect import connect
    from raylm.deploy.status import write_endpoint

    settings = loaded.config.serve
    with connect(store, loaded.config.cluster, report):
        from raylm.serve.app import deploy, undeploy, warnings
        from raylm.serve.keys import FILE

        endpoint = deploy(
            models,
            settings,
            engine,
            cache_root=store.root / "engine",
            base_dir=loaded.base_dir,
            store_keys=store.root / FILE,
            report=report,
        )
        write_endpoint(store, endpoint.to_dict())
        emit(endpoint.to_dict(), endpoint_text(endpoint), output)
        for text in warnings():
            say(f"warning: {text}")
        if detach:
            return
        say("Ctrl-C ends it; --detach would leave it running")
        try:
            _wait(store, loaded)
        finally:
            undeploy(drain_s=settings.drain_s, report=report)


def endpoint_text(endpoint: Endpoint) -> str:
    """The URL, and how to ask it."""
    from raylm.serve.howto import curl_line, python_script

    url, model, prompt = endpoint.url, endpoint.models[0], "Once upon a time"
    call = endpoint.served[0].call
    return "\n".join(
        [
            f"serving {', '.join(endpoint.models)} at {url}",
            "",
            curl_line(url, model, prompt, needs_key=endpoint.needs_key, call=call),
            "",
            python_script(url, model, prompt, needs_key=endpoint.needs_key, call=call),
            "",
        ]
    )


def _last_model(store: Store, loaded: Loaded) -> str:
    """The ref that the run of this configuration made last."""
    from raylm.pipeline import run_name

    file = store.root / "runs" / run_name(loaded.config) / "run.json"
    stages: dict[str, Any] = {}
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        stages = {s["stage"]: s.get("ref") for s in record.get("stages", [])}
    for stage in ("compress", "train"):
        if stages.get(stage):
            return str(stages[stage])
    raise ConfigError(
        "no model is named, and the run of this configuration has made none",
        code="no-model",
        hint="raylm serve MODEL (`raylm models ls` lists them), or `raylm run` first",
    )


def _wait(store: Store, loaded: Loaded) -> None:
    """Until a signal; a cluster that dies meanwhile is an error."""
    from raylm.deploy.record import read_record

    never = threading.Event()
    while not never.wait(_LOOK_S):
        record = read_record(store)
        if loaded.config.cluster.address is None and (record is None or not record.is_alive):
            raise HostError(
                "the cluster has ended",
                code="cluster-ended",
                hint="`raylm logs` shows its last lines, unless it was ended by `raylm down`",
            )
