"""Before a deployment: the files that engines derive from a model are made, once, here.

Replicas then only read them, and start in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from raylm.artifact import Artifact, hash_tree
from raylm.config.engine import DraftModel, EngineConfig
from raylm.engine.convert import ensure_ir
from raylm.engine.draft_folder import draft_ir
from raylm.engine.load import takes_vllm, why_not_openvino
from raylm.engine.vllm.arguments import check_decoder
from raylm.engine.vllm.interpreter import check_interpreter
from raylm.model.folder import check_folder, tokenizer_files
from raylm.progress import Report, Tick, silent
from raylm.serve.catalog import ServedModel


def served_artifact(artifact: Artifact, aliases: Sequence[str] = ()) -> ServedModel:
    """A model artifact under its name; `name-digest12` is an alias."""
    name = artifact.manifest.name
    names = dict.fromkeys([f"{name}-{artifact.digest[:12]}", *aliases])
    return ServedModel(
        name,
        artifact.path,
        artifact.digest,
        tuple(n for n in names if n != name),
        parents=artifact.manifest.parents,
    )


def served_folder(folder: Path, name: str | None = None) -> ServedModel:
    """A Hugging Face folder that is no artifact, under its own name or another.

    Its digest is of all its files, so that derived files are never those of other content.

    Raises:
        ModelError: it is not a model folder.
    """
    check_folder(folder)
    table = repr([(f.path, f.sha256) for f in hash_tree(folder)])
    return ServedModel(
        name or folder.resolve().name, folder.resolve(), hashlib.sha256(table.encode()).hexdigest()
    )


def prepare(
    models: Sequence[ServedModel],
    config: EngineConfig,
    *,
    cache_root: Path,
    report: Report = silent,
) -> EngineConfig:
    """Check the models and make what their engine needs; takes seconds to minutes, once.

    Returns the configuration that replicas get: a draft model is its converted folder there.

    Raises:
        ModelError: a folder cannot be served, with the reason.
        ConfigError: a draft model does not go with one of the models, or an engine's own
            environment lacks something.
    """
    speculation = config.speculation
    for model in models:
        check_folder(model.path)
        tokenizer_files(model.path)
        if takes_vllm(model.path, config):
            check_decoder(model.path)
            check_interpreter(config.vllm)
            continue
        wants_openvino = config.kind == "openvino" or (
            config.kind == "auto" and why_not_openvino(model.path) is None
        )
        if wants_openvino:
            report(Tick("serve", f"preparing {model.name} for the engine"))
            ensure_ir(model.path, cache_root, model.digest)
        if isinstance(speculation, DraftModel):
            ir = draft_ir(speculation, model.path, cache_root)
            config = config.model_copy(
                update={"speculation": speculation.model_copy(update={"model": str(ir)})}
            )
    return config
