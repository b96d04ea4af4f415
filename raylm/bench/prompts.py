"""Prompts: what is asked; made from a seed, or the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylm.bench.arrivals import read_lines
from raylm.errors import ConfigError

Asked = dict[str, Any]
"""`prompt` (text, or token ids) or `messages`, as in a request's body."""
Prompts = Callable[[int], Asked]
"""The prompt of the request with this index."""

_TEXT = """the of and to in is that for it as was with be by on not he this are or his from at
which but have an had they you were their one all we can her has there been if more when will would
who so no out up into do any your what than other time about these two may then some first could now
like our over man new only such us made after also before must through back years where much way
well down should because each just those people how too little state good very make world still
own see men work long get here between both life being under never day same another know while last
might great old year off come since against go came right used take three states himself few house
use during without again place around however home small found thought went say part once general
high upon school every does got united left number course war until always away something fact
water less public put think almost hand enough far took head yet government system better set told
nothing night end why called eyes find going look asked later point knew next city"""
_WORDS = _TEXT.split()


def synthetic(seed: int, lengths: Sequence[int]) -> Prompts:
    """Words of a fixed list, one for each token that is wanted; all prompts differ.

    Most tokenizers have each of the words as one token. What a server counted is in its `usage`;
    the text is not fitted to it, so that every server is asked the same.
    """

    def make(index: int) -> Asked:
        length = np.random.default_rng([seed, index]).choice(np.array(lengths))
        return {"prompt": synthetic_text(seed, index, int(length))}

    return make


def synthetic_text(seed: int, index: int, num_words: int) -> str:
    """The text of one prompt."""
    drawn = np.random.default_rng([seed, index, num_words]).integers(len(_WORDS), size=num_words)
    return " ".join(_WORDS[i] for i in drawn)


def read_prompts(path: Path) -> Prompts:
    """The lines of a file in turn, from the first again when they are at an end.

    A file whose name ends in .jsonl has an object with `prompt` or `messages` a line, any other
    a text a line.

    Raises:
        ConfigError: it cannot be read, or a line is not one.
    """
    lines = read_lines(path, "--prompts")
    asked = [{"prompt": line} for line in lines]
    if path.suffix == ".jsonl":
        asked = [_parsed(line, f"{path}: entry {number}") for number, line in enumerate(lines, 1)]
    return lambda index: asked[index % len(asked)]


def _parsed(line: str, place: str) -> Asked:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.keys() not in ({"prompt"}, {"messages"}):
        raise ConfigError(
            f"{place}: an object with prompt or messages is wanted, and nothing else",
            code="bench-prompts",
            hint='{"prompt": "Dear all,"} or {"messages": [{"role": "user", "content": "Hello"}]}',
        )
    return found
