"""The text that a tokenizer is trained on: an even sample of the training documents.

Documents are cut into excerpts, and each excerpt is drawn by its own hash, so that a few
huge documents are sampled as evenly as many small ones, and any worker draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raylm.data.hashing import HASH_BYTES, fractions

_MAX_EXCERPT_CHARS = 64 * 2**10
_SURPLUS = 1.25
"""More is drawn than asked for: duplicates and held-out documents are left out later."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a document; excerpts with the lowest positions are taken first."""

    position: float
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much to draw; share 1 draws everything."""

    share: float
    excerpt_chars: int

    @classmethod
    def of(cls, corpus_bytes: int, sample_bytes: int) -> Sampling:
        """Draw about `sample_bytes` from a corpus of about `corpus_bytes`."""
        excerpt_chars = min(_MAX_EXCERPT_CHARS, max(256, sample_bytes // 256))
        return cls(_SURPLUS * sample_bytes / max(1, corpus_bytes), excerpt_chars)


def draw(text: str, hashed: bytes, seed: int, sampling: Sampling) -> Iterator[Excerpt]:
    """The excerpts of a document that are drawn; a function of its hash and the seed."""
    if sampling.share <= 0:
        return
    key = np.array([hashed], dtype=f"S{HASH_BYTES}")
    for number, start in enumerate(range(0, len(text), sampling.excerpt_chars)):
        position = float(fractions(key, seed, f"excerpt-{number}")[0])
        if position < sampling.share:
            yield Excerpt(position, text[start : start + sampling.excerpt_chars])


def choose(
    excerpts: Iterable[tuple[int, Excerpt]], train: npt.NDArray[np.bool_], max_bytes: int
) -> list[str]:
    """Texts of (document, excerpt) pairs of training documents, up to `max_bytes` in all.

    The one that crosses the limit is cut.
    """
    drawn = sorted(
        ((e.position, document, e.text) for document, e in excerpts if train[document]),
        key=lambda item: item[:2],
    )
    chosen, room = [], max_bytes
    for _, _, text in drawn:
        if room <= 0:
            break
        data = text.encode()
        chosen.append(data[:room].decode("utf-8", "ignore"))
        room -= len(data)
    return chosen
