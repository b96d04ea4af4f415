"""Which documents stay, and which of them are never trained on: pure functions of hashes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from raylm.data.hashing import HashArray, fractions
from raylm.errors import DataError

Mask = npt.NDArray[np.bool_]
_PURPOSE = "held-out"


def first_of_equal(hashes: HashArray) -> Mask:
    """True for the first of each run of equal texts, in source order; [n]."""
    mask = np.zeros(len(hashes), np.bool_)
    mask[np.unique(hashes, return_index=True)[1]] = True
    return mask


@dataclass(frozen=True, slots=True)
class Selection:
    """Masks over all readable documents [n]; `train` and `held_out` never overlap."""

    short: Mask
    duplicate: Mask
    train: Mask
    held_out: Mask

    @property
    def kept(self) -> Mask:
        """Documents that reach one of the splits."""
        return self.train | self.held_out


def select(
    hashes: HashArray,
    num_bytes: npt.NDArray[np.int64],
    *,
    min_bytes: int,
    dedup: bool,
    held_out: float,
    seed: int,
) -> Selection:
    """Drop short documents, then duplicates, then split the rest by the hash of their text.

    Raises:
        DataError: nothing is left, or nothing falls into one of the splits; the hint says
            which `held_out` would do.
    """
    short = num_bytes < min_bytes
    duplicate = np.zeros_like(short)
    if dedup:
        candidates = np.flatnonzero(~short)
        duplicate[candidates[~first_of_equal(hashes[candidates])]] = True
    kept = ~short & ~duplicate
    if not kept.any():
        raise DataError(
            f"all {len(short)} documents are shorter than data.min_bytes={min_bytes}",
            code="data-empty",
            hint="set data.min_bytes lower, or add text",
        )
    position = fractions(hashes, seed, _PURPOSE)
    held = kept & (position < held_out)
    _check_both(position[kept], held_out)
    return Selection(short, duplicate, kept & ~held, held)


def _check_both(position: npt.NDArray[np.float64], held_out: float) -> None:
    num = len(np.unique(position))
    if num < 2:
        raise DataError(
            "the corpus is one document: it cannot be split into training and held-out text",
            code="data-one-document",
            hint="cut it into several files, or into JSONL records (one document a line)",
        )
    lowest, highest = float(position.min()), float(position.max())
    if lowest >= held_out:
        raise DataError(
            f"none of the {num} documents falls into the held-out split "
            f"(data.held_out={held_out:g})",
            code="data-no-held-out",
            hint=f"set data.held_out to {_above(lowest):g} or more, or add documents",
        )
    if highest < held_out:
        raise DataError(
            f"all of the {num} documents fall into the held-out split (data.held_out={held_out:g})",
            code="data-no-train",
            hint=f"set data.held_out to {_below(highest):g} or less, or add documents",
        )


def _above(value: float) -> float:
    """The next number of four digits above."""
    return float(np.floor(value * 1e4) + 1) / 1e4


def _below(value: float) -> float:
    return float(np.ceil(value * 1e4) - 1) / 1e4


def require_sequences(
    num_tokens: npt.NDArray[np.int64],
    hashes: HashArray,
    held_out: Mask,
    *,
    seq_len: int,
    seed: int,
) -> None:
    """Both splits must fill a sequence; all arrays are of the kept documents [n].

    Raises:
        DataError: one does not; the hint says which `held_out` or `seq_len` would do.
    """
    held, total = int(num_tokens[held_out].sum()), int(num_tokens.sum())
    if min(held, total - held) >= seq_len:
        return
    split, found = ("held-out", held) if held < seq_len else ("training", total - held)
    hint = f"set data.seq_len to {found} or less, or add text"
    position = fractions(hashes, seed, _PURPOSE)
    order = np.argsort(position, kind="stable")
    enough = np.flatnonzero(
        (np.cumsum(num_tokens[order]) >= seq_len)
        & (total - np.cumsum(num_tokens[order]) >= seq_len)
    )
    if len(enough):
        at = enough[0] if split == "held-out" else enough[-1]
        hint = f"set data.held_out to {_above(float(position[order[at]])):g}, or {hint[4:]}"
    raise DataError(
        f"the {split} split has {found} tokens, fewer than one sequence of data.seq_len={seq_len}",
        code="data-too-small",
        hint=hint,
    )


def without(selection: Selection, left_out: Mask) -> Selection:
    """The selection less some documents [n].

    Raises:
        DataError: one of the splits loses all of its documents.
    """
    rest = replace(
        selection, train=selection.train & ~left_out, held_out=selection.held_out & ~left_out
    )
    for split, before, after in (
        ("training", selection.train, rest.train),
        ("held-out", selection.held_out, rest.held_out),
    ):
        if not after.any():
            raise DataError(
                f"none of the {int(before.sum())} records of the {split} split fits a sequence of "
                "data.seq_len tokens",
                code="data-too-small",
                hint="set data.seq_len higher, or data.too_long=truncate, or add records",
            )
    return rest
