"""Catalog: the models that an endpoint serves, by every name they answer to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from raylm.errors import ConfigError, RequestError, nearest
from raylm.model.chat import ChatTemplate
from raylm.serve.backend import Backend
from raylm.serve.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model to serve: its folder, which every node can read, and its names."""

    name: str
    path: Path
    digest: str = ""
    """Of the artifact; empty for a plain folder."""
    aliases: tuple[str, ...] = ()
    created: int = 0
    """Unix time, s."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Entry:
    """A served model with what the gateway needs to talk to it."""

    model: ServedModel
    backend: Backend
    tokenizer: PromptTokenizer
    template: ChatTemplate | None

    @classmethod
    def open(cls, model: ServedModel, backend: Backend, *, max_chars: int) -> Entry:
        """Read the tokenizer and the chat template of a model's folder.

        Raises:
            ModelError: one of them cannot be read.
        """
        tokenizer = PromptTokenizer.from_folder(model.path)
        template = ChatTemplate.from_folder(model.path, max_chars=max_chars)
        return cls(model, backend, tokenizer, template)


class Catalog:
    """The models of one endpoint."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self._by_name = {name: entry for entry in self.entries for name in entry.model.names}

    def only(self, names: Collection[str] | None) -> Catalog:
        """The models with one of these names, as if there were no others; None: all."""
        if names is None:
            return self
        return Catalog(e for e in self.entries if any(name in names for name in e.model.names))

    def find(self, name: str) -> Entry:
        """The model of a name.

        Raises:
            RequestError: 404, with the known names.
        """
        entry = self._by_name.get(name)
        if entry is None:
            known = ", ".join(repr(e.model.name) for e in self.entries) or "none"
            close = nearest(name, self._by_name)
            raise RequestError(
                f"the model {name!r} does not exist here; known: {known}",
                code="model-not-found",
                status=404,
                param="model",
                hint=f"did you mean {close!r}?" if close else None,
            )
        return entry


def check_names(models: Iterable[ServedModel]) -> None:
    """See that no two models share a name.

    Raises:
        ConfigError: two do, or there is no model.
    """
    seen: dict[str, Path] = {}
    for model in models:
        for name in model.names:
            if name in seen:
                raise ConfigError(
                    f"serve.models: {model.path} and {seen[name]} are both named {name!r}",
                    code="model-name-twice",
                )
            seen[name] = model.path
    if not seen:
        raise ConfigError("serve.models: there is no model to serve", code="no-model")
