"""Choose the next token of each row of logits, in numpy.

The choice is a pure function of (logits, sampling parameters, tokens so far, seed, position):
no generator is carried along, so an answer that is continued by another replica goes on with
the very tokens that the first one would have drawn.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.engine.protocol import Sampling, TokenLogprob
from raylm.errors import RaylmError

Floats = NDArray[np.floating[Any]]

_NUCLEUS_GUESSES = (64, 1024)  # likeliest tokens looked at first when top_p is set
_STRIDE = 128  # values of which the largest stands for all when the largest of a row are looked for
_DRAW_BLOCK = 256  # tokens that a draw steps over at once


class Penalties:
    """What the penalties need to know of one answer: which tokens it holds, how often."""

    def __init__(
        self, vocab_size: int, prompt_ids: Iterable[int], emitted_ids: Iterable[int]
    ) -> None:
        self._seen = np.zeros(vocab_size, dtype=np.bool_)
        self._counts = np.zeros(vocab_size, dtype=np.int32)
        self._seen[list(prompt_ids)] = True
        for token_id in emitted_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Note an emitted token."""
        self._seen[token_id] = True
        self._counts[token_id] += 1

    def apply(self, logits: Floats, sampling: Sampling) -> Floats:
        """New logits [vocab]: repetition first, then frequency and presence.

        Repetition (arXiv:1909.05858) counts prompt and answer, as in transformers; frequency
        and presence count the answer only, as OpenAI defines them.
        """
        penalty = sampling.repetition_penalty
        if penalty != 1.0:
            worse = np.where(logits > 0, logits / penalty, logits * penalty)
            logits = np.where(self._seen, worse, logits)
        if sampling.frequency_penalty or sampling.presence_penalty:
            logits = logits - sampling.frequency_penalty * self._counts
            logits = logits - sampling.presence_penalty * (self._counts > 0)
        return logits


class Bias:
    """What one answer adds to the logits of some tokens."""

    def __init__(self, logit_bias: Sequence[tuple[int, float]]) -> None:
        self._ids = np.array([token_id for token_id, _ in logit_bias], np.intp)
        self._values = np.array([value for _, value in logit_bias], np.float32)

    def apply(self, logits: Floats) -> Floats:
        """New logits [vocab]."""
        logits = logits.copy()
        logits[self._ids] += self._values
        return logits


@dataclass(frozen=True, slots=True)
class Row:
    """How to choose from one row; `position` is the index of the token within the answer."""

    sampling: Sampling
    position: int
    penalties: Penalties | None = None
    """None where no penalty is set."""
    bias: Bias | None = None
    banned_ids: tuple[int, ...] = ()
    """End tokens, where the answer may not end yet."""
    allowed: NDArray[np.bool_] | None = None
    """[vocab]: what the answer's grammar allows next; None is everything."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen token; `logprob` if the request asked for it."""

    token_id: int
    logprob: TokenLogprob | None = None


def sample(logits: Floats, rows: Sequence[Row]) -> list[Sampled | RaylmError]:
    """Choose one token for each row of `logits` [rows, vocab].

    Logprobs are those of the model itself, before bias, penalties, grammar, temperature, min_p,
    top_k and top_p. A row whose maximum is not a number gives an error (`non-finite-logits`)
    instead of a token; the others do not suffer from it.
    """
    likeliest = logits.argmax(axis=1)
    finite = np.isfinite(np.take_along_axis(logits, likeliest[:, None], axis=1)[:, 0])
    return [
        _finish(logits[index], row, _choose(logits[index], int(likeliest[index]), row))
        if finite[index]
        else _not_finite()
        for index, row in enumerate(rows)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: 53 bits of a BLAKE2 hash."""
    key = struct.pack("<QQ", seed & (2**64 - 1), position)
    word = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return (word >> 11) * 2.0**-53


def _not_finite() -> RaylmError:
    return RaylmError(
        "the model's logits are not finite",
        code="non-finite-logits",
        hint="its weights or its arithmetic overflow; try engine.precision=f32",
    )


def _choose(logits: Floats, likeliest: int, row: Row) -> int:
    sampling = row.sampling
    steered = _steer(logits, row)
    if steered is not logits:
        logits, likeliest = steered, int(steered.argmax())
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return likeliest
    # Seen from the maximum, the exponentials stay within [0, 1] at any temperature.
    with np.errstate(over="ignore"):
        scaled = (logits - logits[likeliest]).astype(np.float32) / np.float32(sampling.temperature)
    if sampling.min_p > 0.0:
        scaled[scaled < np.log(np.float32(sampling.min_p))] = -np.inf
    tokens = _top_k(scaled, sampling.top_k)
    weights = np.exp(scaled if tokens is None else scaled[tokens])
    if sampling.top_p < 1.0:
        nucleus = _top_p(weights, sampling.top_p)
        tokens = nucleus if tokens is None else tokens[nucleus]
        weights = weights[nucleus]
    drawn = _draw(weights, uniform(sampling.seed, row.position))
    return drawn if tokens is None else int(tokens[drawn])


def _steer(logits: Floats, row: Row) -> Floats:
    """Logits [vocab] with all that the row changes about them; the same array if nothing.

    The grammar comes last and keeps what it allows above what it does not, however small it
    has become: an answer that has one way to go on takes it.
    """
    if row.bias is not None:
        logits = row.bias.apply(logits)
    if row.penalties is not None:
        logits = row.penalties.apply(logits, row.sampling)
    if row.banned_ids:
        logits = logits.copy()
        logits[list(row.banned_ids)] = -np.inf
    if row.allowed is not None:
        lowest = np.finfo(logits.dtype).min
        logits = np.where(row.allowed, np.maximum(logits, lowest), -np.inf)
    return logits


def _top_k(scaled: Floats, top_k: int) -> NDArray[np.intp] | None:
    """Ids, ascending, of the `top_k` largest (and of those equal to the last); None is all."""
    if not 0 < top_k < scaled.size:
        return None
    return _largest(scaled, top_k)


def _top_p(weights: Floats, top_p: float) -> NDArray[np.intp]:
    """Indices, ascending, of the smallest set of largest weights that make up `top_p` of all.

    Nucleus sampling (arXiv:1904.09751); what is equal to the smallest of them stays too.
    """
    wanted = top_p * float(weights.sum())
    # Most nuclei are small; sorting everything is the rare last resort.
    for count in (*_NUCLEUS_GUESSES, weights.size):
        known = _largest(weights, count)
        largest = np.sort(weights[known])[::-1]
        mass = np.cumsum(largest, dtype=np.float64)
        if mass[-1] >= wanted:
            break
    last = min(int(np.searchsorted(mass, wanted)), len(largest) - 1)
    return known[weights[known] >= largest[last]]


def _largest(values: Floats, count: int) -> NDArray[np.intp]:
    """Indices, ascending, of the `count` largest, and of those equal to the last of them.

    The `count` largest of the strides' maxima are as many values, so that none of the largest is
    below the least of them: only what is not has to be partitioned (a vocabulary of 49,152 and
    50 of them: a seventh of the time).
    """
    if count >= values.size:
        return np.arange(values.size)
    num_strides = values.size // _STRIDE
    if num_strides <= count:
        return np.flatnonzero(values >= np.partition(values, -count)[-count])
    maxima = values[: num_strides * _STRIDE].reshape(_STRIDE, num_strides).max(axis=0)
    near = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    able = values[near]
    return near[able >= np.partition(able, -count)[-count]]


def _draw(weights: Floats, point: float) -> int:
    """The index at `point` (0 to 1) of the cumulative weights.

    In the order of token ids and not of probability, so that near ties cannot reorder the
    draw. By blocks first: a running sum of a whole vocabulary costs ten times a plain one.
    """
    blocks = np.cumsum(
        np.add.reduceat(weights, np.arange(0, weights.size, _DRAW_BLOCK)), dtype=np.float64
    )
    target = point * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    begin = block * _DRAW_BLOCK
    inside = np.cumsum(weights[begin : begin + _DRAW_BLOCK], dtype=np.float64)
    rest = target - (blocks[block - 1] if block else 0.0)
    drawn = begin + min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
    while weights[drawn] == 0.0 and drawn > 0:  # rounding at the very end of a block
        drawn -= 1
    return drawn


def _finish(logits: Floats, row: Row, token_id: int) -> Sampled:
    num_logprobs = row.sampling.num_logprobs
    if num_logprobs is None:
        return Sampled(token_id)
    return Sampled(token_id, token_logprob(logits, token_id, num_logprobs))


def token_logprob(logits: Floats, token_id: int, num_top: int) -> TokenLogprob:
    """Natural log-probabilities from one row of raw logits [vocab]; the top ones descend."""
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    best = np.empty(0, dtype=np.intp)
    if num_top:
        best = _largest(logits, num_top)
        best = best[np.lexsort((best, -logits[best]))][:num_top]
    top = tuple((int(token), float(logits[token]) - total) for token in best)
    return TokenLogprob(token_id, float(logits[token_id]) - total, top)
