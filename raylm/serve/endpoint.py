"""Endpoint: where models answer, and what each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylm.serve.catalog import ServedModel
from raylm.serve.howto import FirstCall, first_call


@dataclass(frozen=True, slots=True)
class Answering:
    """A model, or a variant of one, that answers."""

    name: str
    digest: str
    names: tuple[str, ...]
    """Every name that requests may use, the shortest first."""
    variant: str | None = None
    call: FirstCall = "completions"
    """What to ask it first."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the models answer."""

    host: str
    port: int
    models: tuple[str, ...]
    """A name of each: that of its model for the default variant."""
    needs_key: bool
    served: tuple[Answering, ...] = ()
    """The same models with what there is to know of them."""

    @property
    def url(self) -> str:
        """The base that OpenAI clients take, as reached from this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}/v1"

    def to_dict(self) -> dict[str, Any]:
        """What clients need to know, as plain values."""
        return {
            "url": self.url,
            "models": list(self.models),
            "needs_key": self.needs_key,
            "served": [
                {
                    "name": each.name,
                    "variant": each.variant,
                    "digest": each.digest,
                    "names": list(each.names),
                }
                for each in self.served
            ],
        }


def endpoint_of(
    host: str, port: int, models: Sequence[ServedModel], *, needs_key: bool
) -> Endpoint:
    """The endpoint of models that answer."""
    return Endpoint(
        host,
        port,
        tuple(model.names[0] for model in models),
        needs_key,
        tuple(Answering(m.name, m.digest, m.names, m.variant, first_call(m.path)) for m in models),
    )
