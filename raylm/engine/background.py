"""What nobody waits for gives way to what somebody waits for: pure.

Where computing is what a step takes, every sequence in it makes it longer for the others. So those
in the background are held back while others are there, and come along in few steps with few
tokens: they go on slowly, and never stand still.
"""

from __future__ import annotations

PRIORITY = -1000
"""Requests of this priority and below are in the background."""
STEPS = 8
"""While others are there, one in so many steps takes the background along."""
TOKENS = 64
"""Tokens of the background in such a step: it is not much longer than one that only decodes."""
TOKENS_ALONE = 256
"""In a step of its own: enough for computing to be efficient, and a newcomer waits for no more."""


def background_tokens(*, has_others: bool, num_held: int) -> int:
    """How many tokens of the background may go into the next step.

    `has_others`: somebody waits for an answer; `num_held`: steps since the background had any.
    """
    if not has_others:
        return TOKENS_ALONE
    return TOKENS if num_held >= STEPS - 1 else 0
