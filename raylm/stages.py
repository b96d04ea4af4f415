"""The stages: what each is called, what decides its result, what it needs, who does it.

A stage's key is the hash of its code version, of its config without workers, paths, ports and
logging, and of its inputs' digests. Stages are imported when they are asked for: a run that
skips everything loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import Artifact
from raylm.config.run import RunConfig
from raylm.errors import ConfigError, nearest
from raylm.stage import Context

Found = Mapping[str, Artifact]


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the pipeline."""

    name: str
    needs: tuple[str, ...]
    key: Callable[[RunConfig], Mapping[str, Any]]
    """The part of the config that decides the result."""
    work: Callable[[RunConfig, Found, Context], Artifact]
    code: Callable[[], int]
    """Raised when the same config and inputs give another result."""
    inputs: Callable[[RunConfig, Path], Mapping[str, str]] = lambda config, base: {}
    """Digests of what comes from outside the store."""
    alone: Callable[[RunConfig], bool] = lambda config: False
    """Whether it needs no cluster."""


def _data(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.data.prepare import prepare

    return prepare(config.data, context)


def _data_code() -> int:
    from raylm.data.prepare import CODE_VERSION

    return CODE_VERSION


def _data_inputs(config: RunConfig, base: Path) -> Mapping[str, str]:
    from raylm.data.prepare import fingerprint

    return fingerprint(config.data, base)


def _train(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.train.train import train

    model = config.model
    if model.path is not None:
        model = model.model_copy(update={"path": str(context.base_dir / model.path)})
    return train(model, config.train, found["data"], context)


def _train_code() -> int:
    from raylm.train.train import CODE_VERSION

    return CODE_VERSION


def _model_inputs(config: RunConfig, base: Path) -> Mapping[str, str]:
    if config.model.path is None:
        return {}
    from raylm.artifact import hash_file
    from raylm.model.folder import read_config, weight_files

    folder = base / config.model.path
    read_config(folder)
    files = [folder / "config.json", *weight_files(folder)]
    return {f"model:{file.name}": hash_file(file) for file in files}


def _evaluate(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.evaluate.evaluate import evaluate

    return evaluate(config.evaluate, found["train"], found["data"], context)


def _evaluate_code() -> int:
    from raylm.evaluate.evaluate import CODE_VERSION

    return CODE_VERSION


def _compress(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.compress.compress import compress

    return compress(config.compress, config.engine, found["train"], found["data"], context)


def _compress_code() -> int:
    from raylm.compress.compress import CODE_VERSION

    return CODE_VERSION


STAGES: tuple[Stage, ...] = (
    Stage(
        "data", (), lambda c: {"seed": c.seed, "data": c.data.key()}, _data, _data_code,
        _data_inputs,
    ),
    Stage(
        "train", ("data",),
        lambda c: {"seed": c.seed, "model": c.model.key(), "train": c.train.key()},
        _train, _train_code, _model_inputs, lambda c: c.train.is_alone,
    ),
    Stage(
        "evaluate", ("train", "data"), lambda c: {"evaluate": c.evaluate.key()},
        _evaluate, _evaluate_code,
    ),
    Stage(
        "compress", ("train", "data"), lambda c: {"compress": c.compress.key()},
        _compress, _compress_code,
    ),
)  # fmt: skip


def check_compressible(config: RunConfig, base: Path) -> None:
    """See, before anything is trained, that the model can be compressed.

    Raises:
        ConfigError: it is no decoder.
    """
    from raylm.model.folder import architecture_of, read_config
    from raylm.model.presets import architecture, resolve_shape

    if config.model.path is None:
        kind = architecture(resolve_shape(config.model, config.data.seq_len))
    else:
        kind = architecture_of(read_config(base / config.model.path))
    if kind != "decoder":
        raise ConfigError(
            f"compress.method={config.compress.method} covers decoders, this model is an {kind}",
            code="compress-architecture",
            hint="--until evaluate ends the run before",
        )


def check_stage(name: str) -> None:
    """Refuse a name that is no stage.

    Raises:
        ConfigError: with the nearest name.
    """
    names = [stage.name for stage in STAGES]
    if name not in names:
        close = nearest(name, names)
        raise ConfigError(
            f"unknown stage {name!r}; known: {', '.join(names)}",
            code="unknown-stage",
            hint=f"did you mean {close!r}?" if close else None,
        )
