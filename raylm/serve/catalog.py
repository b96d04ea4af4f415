"""Catalog: the models that an endpoint serves, by every name they answer to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from raylm.errors import ConfigError, RequestError, nearest
from raylm.model.chat import ChatTemplate
from raylm.serve.backend import Backend
from raylm.serve.tokenizer import PromptTokenizer

OF_VARIANT = "@"
"""Between a model's name and that of one of its variants."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model to serve, or one variant of a model: its folder, which every node can read, and
    its names."""

    name: str
    """Of it alone: `model@variant` for a variant."""
    path: Path
    digest: str = ""
    """Of the artifact; empty for a plain folder."""
    aliases: tuple[str, ...] = ()
    created: int = 0
    """Unix time, s."""
    variant: str | None = None
    """Which of the variants of its model it is; None: the model has none."""
    is_default: bool = False
    """It is the variant of requests that name none."""
    parents: tuple[str, ...] = ()
    """Digests of what it was made from, where it is an artifact."""

    @property
    def model(self) -> str:
        """The name that it shares with the other variants."""
        if self.variant is None:
            return self.name
        return self.name.removesuffix(f"{OF_VARIANT}{self.variant}")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use for it."""
        return (*((self.model,) if self.is_default else ()), self.name, *self.aliases)


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
        """The models with one of these names, as if there were no others; None: all.

        A model's name is that of all its variants.
        """
        if names is None:
            return self
        return Catalog(
            e for e in self.entries if any(n in names for n in (e.model.model, *e.model.names))
        )

    def find(self, name: str, variant: str | None = None) -> Entry:
        """The model of a name, or one of its variants.

        Raises:
            RequestError: 404, with the known names; 400, the name is that of another variant.
        """
        variants = self._variants(name)
        if variant is not None and variants:
            if variant not in variants:
                raise _no_variant(variants, name, variant, param="variant")
            return variants[variant]
        entry = self._by_name.get(name)
        if entry is None:
            raise self._unknown(name)
        if variant not in (None, entry.model.variant):
            raise _not_of(entry.model, name, variant)
        return entry

    def _variants(self, model: str) -> dict[str, Entry]:
        return {
            e.model.variant: e
            for e in self.entries
            if e.model.variant is not None and e.model.model == model
        }

    def _unknown(self, name: str) -> RequestError:
        if variants := self._variants(name):  # the default is not for this key
            return _no_variant(variants, name, None, param="model")
        model, _, variant = name.rpartition(OF_VARIANT)
        if variants := self._variants(model):
            return _no_variant(variants, model, variant, param="model")
        known = ", ".join(repr(e.model.names[0]) for e in self.entries) or "none"
        close = nearest(name, self._by_name)
        return RequestError(
            f"the model {name!r} does not exist here; known: {known}",
            code="model-not-found",
            status=404,
            param="model",
            hint=f"did you mean {close!r}?" if close else None,
        )


def _no_variant(
    variants: Collection[str], model: str, variant: str | None, *, param: str
) -> RequestError:
    what = f"no variant {variant!r}" if variant is not None else "no default variant"
    return RequestError(
        f"the model {model!r} has {what} here; it has {', '.join(map(repr, variants))}",
        code="variant-not-found",
        status=404,
        param=param,
    )


def _not_of(model: ServedModel, name: str, variant: str | None) -> RequestError:
    if model.variant is None:
        return RequestError(
            f"the model {name!r} has no variant {variant!r} here; it has no variants",
            code="variant-not-found",
            status=404,
            param="variant",
        )
    return RequestError(
        f"the model {name!r} is the variant {model.variant!r}, and {variant!r} is asked for",
        code="invalid-parameter",
        param="variant",
        hint=f"name the model {model.model!r}",
    )


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
