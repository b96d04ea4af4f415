"""From a step to the arrays that the paged model takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raylm.engine.paged_model import TokenBatch
from raylm.engine.scheduler import Slice, Step


def token_batch(step: Step, block_size: int) -> TokenBatch:
    """The arrays of one step, in the order of its slices."""
    parts = step.slices
    counts = np.array([part.num_computed for part in parts], np.int32)
    past = np.array([part.start for part in parts], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    num_blocks = -(-(past + counts) // block_size)
    return TokenBatch(
        token_ids=np.concatenate([ids for part in parts for ids in _token_ids(part)]),
        position_ids=np.arange(ends[-1]) + np.repeat(past - (ends - counts), counts),
        past_lens=past,
        subsequence_begins=_begins(counts),
        block_indices=np.concatenate(
            [
                np.frombuffer(part.sequence.blocks, np.int32, count)
                for part, count in zip(parts, num_blocks, strict=True)
            ]
        ),
        block_indices_begins=_begins(num_blocks),
        max_context_len=int((past + counts).max()),
        rows=_rows(parts, ends),
    )


def _token_ids(part: Slice) -> list[NDArray[np.int64]]:
    # Eight bytes a token; the copy made from this view lets the array grow again.
    known = np.frombuffer(part.sequence.token_ids, np.int64, part.count, 8 * part.start)
    return [known, np.array(part.guessed, np.int64)] if part.guessed else [known]


def _rows(parts: list[Slice], ends: NDArray[np.int32]) -> NDArray[np.int64]:
    """All tokens of a prompt that is scored; of others that sample the last one and the guessed."""
    last = (ends - 1)[[part.samples or part.scores for part in parts]].astype(np.int64)
    if not any(part.scores or part.guessed for part in parts):
        return last
    counts = [
        part.count if part.scores else 1 + len(part.guessed)
        for part in parts
        if part.samples or part.scores
    ]
    return np.concatenate(
        [np.arange(end - count + 1, end + 1) for end, count in zip(last, counts, strict=True)]
    )


def _begins(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    return begins
