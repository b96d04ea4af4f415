"""Guess the tokens that come next from those that were there before: speculation's first half.

Prompt lookup (an n-gram match over prompt and answer, as in transformers' assisted generation;
the verification is that of arXiv:2211.17192): no second model, and no use where nothing repeats.
"""

from __future__ import annotations

from array import array

import numpy as np

from raylm.config.engine import PromptLookup


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
