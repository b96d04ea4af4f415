"""What the loop reads: batches by global sample number, masked where the objective asks for it.

A sample number stands for a row (raylm/data/order.py) and for a draw of hidden tokens; both
are pure functions of the seed and the number, the same on every rank and after every restart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylm.config.train import ObjectiveName
from raylm.data.hashing import U64, mix64
from raylm.data.order import sample_indices
from raylm.data.shards import NO_TARGET, Batch, PackedSplit
from raylm.errors import DataError
from raylm.model.folder import special_ids, special_token_ids

I64 = npt.NDArray[np.int64]
_CHOSEN, _AS_MASK, _AS_OTHER = 0.15, 0.8, 0.1
"""BERT (arXiv 1810.04805, appendix A.1): so many tokens are chosen, and of those so many are
hidden, so many become another token; the rest stays as it is."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that are no text, and of the one that hides others."""

    ids: tuple[int, ...] = ()
    mask: int | None = None

    @classmethod
    def of(cls, tokenizer: Path) -> SpecialTokens:
        """Those of a tokenizer folder.

        Raises:
            ModelError: it has no readable tokenizer.json.
        """
        return cls(special_ids(tokenizer), special_token_ids(tokenizer)["mask"])


class Source:
    """The samples of a split, by number."""

    def __init__(
        self, split: PackedSplit, seed: int, objective: ObjectiveName, special: SpecialTokens
    ) -> None:
        """Raises DataError where tokens are to be hidden and there is no token for it."""
        self.split = split
        self.spent_s = 0.0
        """Time that was spent on reading and packing, so far."""
        self._seed, self._special = seed, special
        self.reference: npt.NDArray[np.float32] | None = None
        """What batches say of their rows as `Batch.reference`, [num_samples, segments]."""
        self._masks = objective == "mlm"
        if self._masks and special.mask is None:
            raise DataError(
                "the tokenizer has no mask token, which train.objective=mlm hides others with",
                code="data-no-mask",
                hint="set data.tokenizer.mask_token to true, or data.tokenizer.path to a "
                "tokenizer that has one",
            )

    def batch(self, numbers: npt.ArrayLike) -> Batch:
        """Samples by global number, [n], in the order asked for."""
        with self._timed():
            numbers = np.asarray(numbers, np.int64).reshape(-1)
            return self._finished(self.rows(numbers), numbers)

    def in_order(self, rows: npt.ArrayLike) -> Batch:
        """The split's own rows [n], as evaluation reads them; row r is masked as sample r."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        return self._finished(rows, rows)

    def num_targets(self, numbers: npt.ArrayLike) -> int:
        """What the loss of these samples [m] is divided by."""
        numbers = np.asarray(numbers, np.int64).reshape(-1)
        with self._timed():
            if not self._masks:
                return self.split.num_targets(self.rows(numbers))
            return int((self._finished(self.rows(numbers), numbers).targets != NO_TARGET).sum())

    def num_targets_in_order(self, rows: npt.ArrayLike) -> int:
        """What the loss of the split's own rows is divided by."""
        if not self._masks:
            return self.split.num_targets(rows)
        return int((self.in_order(rows).targets != NO_TARGET).sum())

    def rows(self, numbers: I64) -> I64:
        """The split's rows that global sample numbers [n] stand for."""
        if not len(numbers):
            return numbers
        first, last = int(numbers.min()), int(numbers.max())
        if last - first < 4 * len(numbers):
            found = sample_indices(self._seed, self.split.num_samples, first, last - first + 1)
            return found[numbers - first]
        size = self.split.num_samples
        return np.concatenate([sample_indices(self._seed, size, int(n), 1) for n in numbers])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent_s += time.perf_counter() - started

    def _finished(self, rows: I64, numbers: I64) -> Batch:
        reference = None if self.reference is None else self.reference[rows]
        batch = replace(self.split.batch(rows), numbers=numbers, reference=reference)
        if not self._masks:
            return batch
        return mask_tokens(batch, numbers, self._seed, self._special, self.split.vocab_size)


def mask_tokens(
    batch: Batch, numbers: I64, seed: int, special: SpecialTokens, vocab_size: int
) -> Batch:
    """Hide tokens of a batch, and make them its only targets: a pure function of the seed, the
    samples' numbers [n] and the place in the row.
    """
    assert special.mask is not None
    ids = batch.input_ids
    open_to = (batch.segment_ids > 0) & ~np.isin(ids, special.ids)
    draw = _bits(numbers, ids.shape[1], seed)
    chosen = open_to & (_fraction(draw) < _CHOSEN)
    kind = _fraction(mix64(draw ^ np.uint64(1)))
    plain = np.setdiff1d(np.arange(vocab_size), special.ids)
    other = plain[(_fraction(mix64(draw ^ np.uint64(2))) * len(plain)).astype(np.int64)]
    shown = np.where(
        kind < _AS_MASK, special.mask, np.where(kind < _AS_MASK + _AS_OTHER, other, ids)
    )
    return replace(
        batch,
        input_ids=np.where(chosen, shown, ids),
        targets=np.where(chosen, ids, NO_TARGET),
    )


def _bits(numbers: I64, length: int, seed: int) -> U64:
    """64 uniform bits for each place of each sample, [n, length]."""
    key = mix64(mix64(np.full(1, seed, np.uint64)) ^ np.uint64(0x6D61736B))
    rows = mix64(key ^ numbers.astype(np.uint64))
    return mix64(rows[:, None] ^ np.arange(length, dtype=np.uint64))


def _fraction(bits: U64) -> npt.NDArray[np.float64]:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
