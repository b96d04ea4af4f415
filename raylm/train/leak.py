"""Whether one document of a row reaches another: tried on the model and a batch of the run.

A mask that an attention implementation ignores shows neither in shapes nor in the loss, which
even falls faster. So other tokens are put in one segment, and the other segments' scores are
compared with what they were.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raylm.data.shards import NO_TARGET, Batch
from raylm.errors import TrainError
from raylm.train.objectives.intercept import inner
from raylm.train.objectives.objective import Objective, evaluating

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a logit may move, relative to the largest: rounding alone, for other kernels may be
chosen for other values. What leaks moves logits by a tenth and more."""


def check_no_leak(model: Any, batch: Batch, objective: Objective) -> bool:
    """Change one segment's tokens; no other segment's scores may change.

    Not for a run with `mask_documents` off. Workers of ZeRO-3 call it with the same batch.

    Returns:
        Whether it could be tried: False where no row has two segments with something to score.

    Raises:
        TrainError: scores changed.
    """
    rows = np.flatnonzero(_scored_segments(batch) >= 2)
    if not len(rows):
        return False
    row = _row(batch, int(rows[0]))
    segments = np.unique(row.segment_ids[row.segment_ids > 0])
    dtype = next(model.parameters()).dtype
    # The first reaches those after it where a causal mask alone is at work, the last those
    # before it where there is none.
    for segment in (segments[0], segments[-1]):
        rest = _without_targets(row, int(segment))
        with evaluating(model):
            before, *_ = objective.scores(model, rest)
            after, *_ = objective.scores(model, _perturbed(rest, int(segment)))
        if not len(before):
            continue
        moved = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
        if not moved <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
            raise TrainError(
                f"{type(inner(model)).__name__} lets documents of one row see each other: other "
                f"tokens in segment {segment} move the scores of the rest by {moved:.1%}",
                code="train-leak",
                hint="load the model with attention that takes masks (sdpa or eager), train one "
                "document a row, or set train.mask_documents to false to accept it",
            )
    return True


def _scored_segments(batch: Batch) -> np.ndarray:
    """How many segments of each row have something to score, [n]."""
    if batch.labels is not None:
        return (batch.labels != NO_TARGET).sum(1)
    scored = np.where(batch.targets != NO_TARGET, batch.segment_ids, 0)
    return np.array([len(np.unique(row[row > 0])) for row in scored])


def _row(batch: Batch, row: int) -> Batch:
    return Batch(
        input_ids=batch.input_ids[row : row + 1],
        segment_ids=batch.segment_ids[row : row + 1],
        position_ids=batch.position_ids[row : row + 1],
        targets=batch.targets[row : row + 1],
        source=None if batch.source is None else _row(batch.source, row),
        labels=None if batch.labels is None else batch.labels[row : row + 1],
    )


def _without_targets(row: Batch, segment: int) -> Batch:
    targets = np.where(row.segment_ids == segment, NO_TARGET, row.targets)
    labels = None if row.labels is None else row.labels.copy()
    if labels is not None:
        labels[:, segment - 1] = NO_TARGET
    return replace(row, targets=targets, labels=labels)


def _perturbed(row: Batch, segment: int) -> Batch:
    """Every token of the segment becomes the next of those that the row has."""
    ids = row.input_ids.copy()
    where = row.segment_ids == segment
    known = np.unique(ids) if len(np.unique(ids)) > 1 else np.array([ids[0, 0], ids[0, 0] ^ 1])
    known.sort()
    ids[where] = known[(np.searchsorted(known, ids[where]) + 1) % len(known)]
    source = None if row.source is None else _perturbed(row.source, segment)
    return replace(row, input_ids=ids, source=source)
