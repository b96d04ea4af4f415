"""YAML text to plain values, remembering where each of them stood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from raylm.errors import ConfigError

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Source:
    """Plain values of one file (or flag), and the line of every key in them."""

    name: str
    values: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """`file:line` of a key, or of the nearest key above it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return self.name


def parse(text: str, name: str) -> Source:
    """Parse YAML whose top is a mapping.

    Raises:
        ConfigError: not YAML, a duplicated key, or no mapping at the top; with file and line.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        source = Source(name, {})
        if node is not None:
            source.values = _build(node, (), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(
            f"{name}:{line}: not valid YAML: {error.problem}", code="config-syntax"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}", code="config-syntax") from error
    if not isinstance(source.values, dict):
        raise ConfigError(
            f"{name}:1: a mapping of sections is expected, found {type(source.values).__name__}",
            code="config-syntax",
        )
    return source


def _build(node: yaml.Node, path: Path, source: Source) -> Any:
    if isinstance(node, yaml.MappingNode):
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in built:
                first = source.lines[(*path, key)]
                raise ConfigError(
                    f"{source.name}:{line}: {'.'.join(map(str, (*path, key)))} is set twice "
                    f"(first in line {first})",
                    code="config-duplicate-key",
                    hint="remove one of the two",
                )
            source.lines[(*path, key)] = line
            built[key] = _build(value_node, (*path, key), source)
        return built
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            source.lines[(*path, index)] = item.start_mark.line + 1
            items.append(_build(item, (*path, index), source))
        return items
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node)


def scalar(node: yaml.ScalarNode) -> Any:
    """One YAML scalar, with `3e-4` read as the number it looks like (YAML 1.2)."""
    loader = yaml.SafeLoader("")
    value = loader.construct_object(node)
    if isinstance(value, str) and node.style is None:
        try:
            if value[:1].isdigit() or value[:1] in "+-.":
                return float(value)
        except ValueError:
            return value
    return value
