"""app: what a RayService's `serveConfigV2` imports; models in a store to a Serve application.

Ray Serve runs it in a task on the cluster, whenever the arguments in `serveConfigV2` change, and
then replaces every replica: it gives all deployments the version of the arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.errors import RaylmError
from raylm.serve.auth import keys_for
from raylm.serve.build import Placement, build_application
from raylm.serve.catalog import ServedModel, check_names
from raylm.serve.prepare import served_artifact, served_folder
from raylm.serve.replica import CAUSE
from raylm.serve.room import num_threads
from raylm.serve.trial import try_new
from raylm.store import Store


class ModelArgs(BaseModel):
    """One model to serve."""

    model_config = ConfigDict(extra="forbid")

    ref: str
    """Artifact of the store, or the absolute path of a folder."""
    labels: dict[str, str] = {}
    """Labels of the Ray nodes on which its replicas run."""


class AppArgs(BaseModel):
    """`args` of the application in `serveConfigV2`."""

    model_config = ConfigDict(extra="forbid")

    store: str
    """Folder or URL."""
    models: list[ModelArgs]
    serve: ServeConfig
    engine: EngineConfig
    cache_root: Path
    """Where engines keep what they derive from models."""
    node_cpus: float
    """CPUs that a Ray node offers: threads must not follow how many are up at the moment."""
    surge_percent: int


def app(args: dict[str, Any]) -> serve.Application:
    """The application.

    Raises:
        RuntimeError: with the cause as `raylm.serve.startup` reads it; Serve shows it as the
            application's message, and an application that was there before goes on.
    """
    try:
        return _build(AppArgs.model_validate(args))
    except RaylmError as error:
        kind = type(error).__name__
        raise RuntimeError(f"{CAUSE}{kind}[{error.code}] {error.message}") from error


def _build(args: AppArgs) -> serve.Application:
    store = Store(args.store)
    models = [_served(store, model.ref) for model in args.models]
    check_names(models)
    path = None if args.serve.api_keys is None else Path(args.serve.api_keys)
    keys = keys_for(args.serve, path)
    threads = num_threads(models, args.serve, args.engine, [args.node_cpus])
    placement = Placement(
        surge_percent=args.surge_percent,
        labels={m.name: a.labels for m, a in zip(models, args.models, strict=True)},
    )
    try_new(
        models,
        args.serve,
        args.engine,
        cache_root=args.cache_root,
        num_threads=threads,
        placement=placement,
    )
    return build_application(
        models,
        args.serve,
        args.engine,
        cache_root=args.cache_root,
        keys=keys,
        key_file=path,
        num_threads=threads,
        placement=placement,
    )


def _served(store: Store, ref: str) -> ServedModel:
    folder = Path(ref)
    if folder.is_absolute() and not folder.is_relative_to(store.root):
        return served_folder(folder)
    return served_artifact(store.resolve(folder.name if folder.is_absolute() else ref, "model"))
