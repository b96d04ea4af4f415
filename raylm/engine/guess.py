"""Guess the tokens that come next from those that were there before: speculation's first half.

Prompt lookup (an n-gram match over prompt and answer, as in transformers' assisted generation;
the verification is that of arXiv:2211.17192): no second model, and no use where nothing repeats.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from raylm.config.engine import PromptLookup
from raylm.engine.answer import Answer
from raylm.engine.sequence import Sequence


class Guesser(Protocol):
    """Where guesses come from. Within a step: `offer`, then `guess`, then `known`."""

    def offer(self, sequence: Sequence, most: int) -> int:
        """How many tokens it could guess behind a sequence, at most so many."""
        ...

    def guess(self, asked: Iterable[tuple[Sequence, Answer, int]]) -> dict[str, list[int]]:
        """So many tokens behind each of the sequences, or fewer, by their ids."""
        ...

    def pass_s(self, num_sequences: int) -> float:
        """Seconds to guess one more token behind each of so many sequences."""
        ...

    def known(self, sequence: Sequence) -> list[int]:
        """What it takes to come next in this step, guessed with the model's help or not."""
        ...

    def forget(self, request_id: str) -> None:
        """An answer is at its end."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Lookup:
    """Prompt lookup; what was found costs nothing, so that it is known of every step."""

    def __init__(self, settings: PromptLookup) -> None:
        self._settings = settings
        self._found: dict[str, list[int]] = {}

    def offer(self, sequence: Sequence, most: int) -> int:
        """As many as have followed before."""
        found = self._found[sequence.id] = look_up(sequence.token_ids, self._settings)
        return min(len(found), most)

    def guess(self, asked: Iterable[tuple[Sequence, Answer, int]]) -> dict[str, list[int]]:
        """The first of those that were found."""
        return {sequence.id: self._found[sequence.id][:count] for sequence, _, count in asked}

    def pass_s(self, num_sequences: int) -> float:
        """Next to nothing."""
        return 0.0

    def known(self, sequence: Sequence) -> list[int]:
        """All that were found."""
        return self._found.get(sequence.id, [])

    def forget(self, request_id: str) -> None:
        """Nothing is kept of an answer."""
        self._found.pop(request_id, None)

    def close(self) -> None:
        """There is nothing to free."""


def look_up(token_ids: array[int], settings: PromptLookup) -> list[int]:
    """What followed the last `ngram` tokens when they were there before; empty if they were not.

    The latest place is taken that as many tokens follow as are wanted; failing that the first,
    which is followed by the most.
    """
    ngram, num_tokens = settings.ngram, settings.num_tokens
    tokens = np.frombuffer(token_ids, np.int64)  # the array can grow again once this is gone
    num_places = len(tokens) - ngram
    if num_places < 1:
        return []
    matches = np.ones(num_places, np.bool_)
    for offset in range(ngram):
        matches &= tokens[offset : offset + num_places] == tokens[num_places + offset]
    ends = np.flatnonzero(matches) + ngram
    if not ends.size:
        return []
    followed = ends[ends + num_tokens <= len(tokens)]
    end = int(followed[-1] if followed.size else ends[0])
    found: list[int] = tokens[end : end + num_tokens].tolist()
    return found
