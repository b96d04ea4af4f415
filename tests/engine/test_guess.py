import random
from array import array

import pytest

from raylm.config.engine import PromptLookup
from raylm.engine.guess import look_up


@pytest.mark.parametrize(
    ("tokens", "ngram", "num_tokens", "expected"),
    [
        ([1, 2, 3, 9, 8, 7, 6, 1, 2, 3], 3, 4, [9, 8, 7, 6]),
        ([1, 2, 3, 9, 8, 7, 6, 1, 2, 3], 3, 2, [9, 8]),
        ([1, 2, 3, 9, 8, 7, 6, 5, 2, 3], 3, 4, []),
        ([5, 6, 1, 5, 6, 2, 0, 5, 6], 2, 2, [2, 0]),  # the later place
        ([5, 6, 1, 1, 5, 6, 2, 5, 6], 2, 4, [1, 1, 5, 6]),  # the one that enough tokens follow
        ([5, 6, 1, 5, 6], 2, 4, [1, 5, 6]),
        ([4, 4, 4, 4], 2, 3, [4, 4]),
        ([4, 4, 4, 4, 4, 4, 4], 2, 3, [4, 4, 4]),
        ([1, 2, 3], 3, 4, []),
        ([1, 2], 3, 4, []),
        ([7], 1, 1, []),
        ([7, 7], 1, 2, [7]),
    ],
)
def test_what_followed_before_is_guessed(tokens, ngram, num_tokens, expected):
    settings = PromptLookup(ngram=ngram, num_tokens=num_tokens)
    assert look_up(array("q", tokens), settings) == expected


def test_a_guess_is_a_piece_of_the_text_behind_the_same_tokens():
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        tokens = array("q", (rng.randrange(4) for _ in range(rng.randrange(1, 60))))
        settings = PromptLookup(ngram=rng.randint(1, 4), num_tokens=rng.randint(1, 6))
        guess = look_up(tokens, settings)
        tokens.append(0)  # no view is left over that would forbid it
        tokens.pop()
        wanted = tokens[-settings.ngram :] + array("q", guess)
        places = [
            i
            for i in range(len(tokens) - settings.ngram)
            if tokens[i : i + settings.ngram] == tokens[-settings.ngram :]
        ]
        assert bool(guess) == bool(places)
        if guess:
            found += 1
            assert any(tokens[i : i + len(wanted)] == wanted for i in places)
    assert found > 100
