"""`load_config`: a file, overrides on top, checked key by key.

Every value remembers where it came from; an error names file, line and key, what was
found, what is allowed, and the nearest key or recipe that was probably meant.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raylm.config.run import RunConfig
from raylm.config.source import Path, Source, parse
from raylm.errors import ConfigError, nearest

_TYPE_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text",
    "tuple": "a list", "model_type": "a mapping", "model_attributes_type": "a mapping",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration and the origin of every value in it."""

    config: RunConfig
    origins: dict[str, str]
    """Dotted key -> `file:line`, `--set` or `default`."""
    base_dir: FilePath
    """Relative paths in the file start here."""


def recipe_names() -> list[str]:
    """Recipes that ship with raylm."""
    folder = resources.files("raylm.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith("yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in recipe_names():
        close = nearest(name, recipe_names())
        raise ConfigError(
            f"{name!r} is neither a file nor a recipe ({', '.join(recipe_names())})",
            code="config-not-found",
            hint=f"did you mean {close!r}?" if close else "`raylm init` writes a raylm.yaml",
        )
    return (resources.files("raylm.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(
    path: str | FilePath | None = None,
    overrides: Sequence[str] = (),
    *,
    base_dir: str | FilePath | None = None,
) -> Loaded:
    """Read a config file (or the recipe of that name), apply `a.b=c` overrides, check all.

    Relative paths in it start at `base_dir`; None takes the file's own folder.

    Raises:
        ConfigError: with file, line and key; nothing has been started then.
    """
    source, own_dir = _read(path)
    flags = [_override(text) for text in overrides]
    values = source.values
    for key, flag in flags:
        _put(values, key, flag)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source, {key for key, _ in flags}) from None
    origins = dict(_origins(config, source, {key for key, _ in flags}))
    return Loaded(config, origins, FilePath(base_dir).absolute() if base_dir else own_dir)


def _read(path: str | FilePath | None) -> tuple[Source, FilePath]:
    if path is None:
        return Source("defaults", {}), FilePath.cwd()
    file = FilePath(path)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, a YAML file is expected", code="config-not-found")
    if not file.exists():
        if file.suffix in {".yaml", ".yml"} or file.parent != FilePath():
            raise ConfigError(
                f"there is no file {file}",
                code="config-not-found",
                hint="`raylm init` writes a raylm.yaml to start from",
            )
        return parse(recipe_text(str(path)), f"recipe {path}"), FilePath.cwd()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}", code="config-syntax") from error
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}", code="config-not-found"
        ) from error
    return parse(text, str(path)), file.resolve().parent


def _override(text: str) -> tuple[Path, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text}: a.b=value is expected",
            code="config-override",
            hint="--set train.steps=50",
        )
    path: Path = tuple(key.strip().split("."))
    try:
        return path, parse(f"value: {value}\n", f"--set {key}").values["value"]
    except ConfigError:
        # Globs such as **/*.py are no YAML; a text was meant, and its type is checked later.
        return path, value


def _put(values: dict[str, Any], path: Path, value: Any) -> None:
    for index, part in enumerate(path[:-1]):
        step = values.setdefault(str(part), {})
        if step is None:
            step = values[str(part)] = {}
        if not isinstance(step, dict):
            raise ConfigError(
                f"--set {'.'.join(map(str, path))}: {'.'.join(map(str, path[: index + 1]))} "
                "is a value, not a section",
                code="config-override",
            )
        values = step
    values[str(path[-1])] = value


def _origins(config: RunConfig, source: Source, flags: set[Path]) -> Iterator[tuple[str, str]]:
    for path in _leaves(config, ()):
        name = ".".join(map(str, path))
        if any(path[: len(flag)] == flag for flag in flags):
            yield name, "--set"
        elif path in source.lines:
            yield name, source.place(path)
        else:
            yield name, "default"


def _leaves(section: BaseModel, path: Path) -> Iterator[Path]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name)


def _explain(error: ValidationError, source: Source, flags: set[Path]) -> ConfigError:
    lines, hints, codes = [], [], []
    for detail in error.errors(include_url=False):
        path: Path = tuple(detail["loc"])
        place = "--set" if any(path[: len(f)] == f for f in flags) else source.place(path)
        text, hint, code = _one(detail, path)
        lines.append(f"{place}: {text}")
        codes.append(code)
        if hint:
            hints.append(hint)
    return ConfigError("\n".join(lines), code=codes[0], hint="; ".join(hints) or None)


def _one(detail: ErrorDetails, path: Path) -> tuple[str, str | None, str]:
    key = ".".join(map(str, path))
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        close = nearest(str(path[-1]), known) or _elsewhere(str(path[-1]))
        hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}", hint, "config-unknown-key"
    if kind == "value_error":
        cause = str(detail["ctx"]["error"])
        return (f"{key}: {cause}" if key else cause), None, "config-conflict"
    for start, name in _TYPE_NAMES.items():
        if kind.startswith(start) and kind.endswith(("_type", "_parsing", "_from_float")):
            return f"{key}: {name} is expected, found {found!r}", None, "config-type"
    if kind == "string_pattern_mismatch":
        pattern = detail["ctx"]["pattern"]
        return f"{key}={found!r}: must match {pattern}", None, "config-value"
    message = detail["msg"].removeprefix("Input should be ")
    return f"{key}={found!r}: must be {message}", None, "config-value"


def _known_keys(path: Path) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in path:
        info = model.model_fields.get(str(part))
        inner = _section_of(info.annotation) if info else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((s for a in typing.get_args(annotation) if (s := _section_of(a))), None)
    return None


def _elsewhere(name: str) -> str | None:
    """A key of this name in another section, dotted: people forget the section."""
    for path in _leaves(RunConfig(), ()):
        if path[-1] == name:
            return ".".join(map(str, path))
    return None
