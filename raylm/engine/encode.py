"""Texts in, numbers out: embeddings and classes, the calls of an engine beside answers.

One request is one text and one result; nothing is streamed. They go through the same queue and
the same thread as answers, under the same limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["mean", "cls", "last"]
"""The mean of all tokens' last states, the first token's, or the last one's."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """One text to embed, as token ids of the model's own tokenizer."""

    id: str
    prompt_ids: tuple[int, ...]
    pooling: Pooling | None = None
    """None takes the model's own: the first of `Capabilities.poolings`."""
    normalize: bool = True
    """Divide by the Euclidean length."""
    truncate: bool = False
    """Take the first tokens that fit of a text that is too long, instead of refusing it."""
    tenant: str = "default"
    priority: int = 0
    """Higher goes first."""
    deadline_s: float | None = None
    """Unix time after which nobody waits any more."""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """One text to classify; fields as `EmbedRequest`'s."""

    id: str
    prompt_ids: tuple[int, ...]
    truncate: bool = False
    tenant: str = "default"
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A text as a vector [size]; `num_tokens` of it were read."""

    request_id: str
    vector: NDArray[np.float32]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The probability of every class of the model, in the model's order.

    They add up to 1, but for models trained to give a text several labels: there each stands
    for itself.
    """

    request_id: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    num_tokens: int

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[max(range(len(self.labels)), key=self.probabilities.__getitem__)]


EncodeRequest = EmbedRequest | ClassifyRequest
Encoded = Embedding | Classification
