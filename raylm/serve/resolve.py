"""Resolve: from what the config or the command line names to the folders that are served.

An adapter is merged into its model here, once: the result is a model artifact like any other, found
again by the digests of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raylm.artifact import Artifact, hash_file
from raylm.config.engine import DraftModel, EngineConfig
from raylm.config.serve import VariantConfig, VariantsConfig
from raylm.engine.adapter import CONFIG, WEIGHTS, check_base_name, read_adapter_config
from raylm.engine.apart import run_apart
from raylm.engine.merge import CODE_VERSION
from raylm.progress import Report, Tick, silent
from raylm.serve.catalog import OF_VARIANT, ServedModel, check_names
from raylm.serve.prepare import served_artifact, served_folder
from raylm.store import Store, stage_key


@dataclass(frozen=True, slots=True)
class Found:
    """A model that was named: as it is served by itself, and its artifact if it is one."""

    model: ServedModel
    artifact: Artifact | None


def resolve(
    models: Sequence[str | VariantsConfig],
    store: Store,
    base_dir: Path,
    report: Report = silent,
) -> list[ServedModel]:
    """The models to serve, variants side by side.

    Raises:
        ConfigError: two share a name.
        ArtifactError: one is neither a folder nor in the store.
        ModelError: a folder cannot be served, or an adapter not be merged.
    """
    served: list[ServedModel] = []
    for entry in models:
        if isinstance(entry, str):
            served.append(find(entry, store, base_dir).model)
            continue
        for variant, config in entry.variants.items():
            model = _variant(f"{entry.name}-{variant}", config, store, base_dir, report)
            served.append(
                replace(
                    model,
                    name=f"{entry.name}{OF_VARIANT}{variant}",
                    variant=variant,
                    is_default=variant == entry.default_variant,
                )
            )
    check_names(served)
    return served


def find(ref: str, store: Store, base_dir: Path) -> Found:
    """A folder if there is one of that name, else an artifact.

    Raises:
        ArtifactError: it is neither.
        ModelError: it is a folder of something else.
    """
    folder = base_dir / Path(ref).expanduser()
    if not folder.is_dir():
        folder = Path(ref).expanduser()
    if (folder / "config.json").is_file() and not folder.is_relative_to(store.root):
        return Found(served_folder(folder), None)
    if folder.is_relative_to(store.root):
        ref = folder.name
    artifact = store.resolve(ref, "model")
    return Found(served_artifact(artifact), artifact)


def with_draft(engine: EngineConfig, store: Store, base_dir: Path) -> EngineConfig:
    """How engines run, with the folder of a draft model instead of its name.

    Raises:
        ArtifactError, ModelError: there is no such model, as in `find`.
    """
    if not isinstance(engine.speculation, DraftModel):
        return engine
    folder = find(engine.speculation.model, store, base_dir).model.path
    draft = engine.speculation.model_copy(update={"model": str(folder)})
    return engine.model_copy(update={"speculation": draft})


def _variant(
    name: str, config: VariantConfig, store: Store, base_dir: Path, report: Report
) -> ServedModel:
    found = find(config.model, store, base_dir)
    if config.adapter is not None:
        adapter = base_dir / Path(config.adapter).expanduser()
        check_base_name(adapter, _base_names(found), config.trained_on)
        return served_artifact(merged(name, found, adapter, store, report))
    return found.model


def _base_names(found: Found) -> list[str]:
    """What an adapter may call the model it was trained on."""
    folder = found.model.path.name
    return list(dict.fromkeys([found.model.name, *found.model.aliases, folder]))


def merged(
    name: str, base: Found, adapter: Path, store: Store, report: Report = silent
) -> Artifact:
    """The model with an adapter merged into it; made now if it is not in the store.

    Raises:
        ModelError: they do not go together, or one of them cannot be used.
    """
    settings = read_adapter_config(adapter)
    files = [path for path in (adapter / CONFIG, adapter / WEIGHTS) if path.is_file()]
    digests = {"base": base.model.digest} | {path.name: hash_file(path) for path in files}
    key = stage_key("merge", CODE_VERSION, {"name": name}, digests)
    with store.lock(f"merge-{key[:12]}"):
        made = store.find(key)
        if made is not None:
            return made
        report(Tick("serve", f"merging {adapter.name} into {base.model.name}"))
        with store.draft("model", name) as draft:
            run_apart(
                "raylm.engine.merge",
                (base.model.path, adapter, draft.path),
                what=f"merging {adapter} into {base.model.path}",
                code="merge-failed",
            )
            artifact = draft.commit(
                parents=() if base.artifact is None else (base.artifact,),
                config={"merged": digests, "rank": settings.get("r")},
            )
        store.remember(key, artifact)
        return artifact
