"""Whether one document of a row reaches another: tried on the model and a batch of the run.

A mask that an attention implementation ignores shows neither in shapes nor in the loss, which
even falls faster. So other tokens are put in one segment, and the other segments' scores are
compared with what they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from raylm.data.shards import NO_TARGET, Batch
from raylm.errors import TrainError
from raylm.model.document_attention import spans_for
from raylm.model.varlen_attention import documents_for
from raylm.train.objectives.intercept import inner
from raylm.train.objectives.objective import Objective, evaluating

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a logit may move, relative to the largest: rounding alone, for other kernels may be
chosen for other values. What leaks moves logits by a tenth and more."""


def check_paths(
    model: Any, batches: Iterable[Batch], objective: Objective, num_samples: int
) -> list[str]:
    """Check each path of attention that batches take, until so many samples were seen.

    Returns:
        Paths that no batch could be tried on.

    Raises:
        TrainError: scores changed.
    """
    seen, packed, tried, num_seen = set(), set(), set(), 0
    for batch in batches:
        path = attention_path(model, batch)
        seen.add(path)
        if batch.segment_ids.max() > 1:
            packed.add(path)
        if path not in tried and check_no_leak(model, batch, objective):
            tried.add(path)
        num_seen += len(batch.input_ids)
        if num_seen >= num_samples:
            break
    # Where rows of some batches are packed, the others have nothing to keep apart.
    return sorted((packed or seen) - tried)


def check_no_leak(model: Any, batch: Batch, objective: Objective) -> bool:
    """Change one segment's tokens; no other segment's scores may change.

    Not for a run with `mask_documents` off. Workers of ZeRO-3 call it with the same batch. As few
    of its rows are tried as take the attention's path that the whole batch does.

    Returns:
        Whether it could be tried: False where no row has two segments with something to score.

    Raises:
        TrainError: scores changed.
    """
    rows = np.flatnonzero(_scored_segments(batch) >= 2)
    if not len(rows):
        return False
    tried = _fewest(model, batch, rows.tolist())
    segments = np.unique(tried.segment_ids[0][tried.segment_ids[0] > 0])
    dtype = next(model.parameters()).dtype
    # The first reaches those after it where a causal mask alone is at work, the last those
    # before it where there is none.
    for segment in (segments[0], segments[-1]):
        rest = _without_targets(tried, int(segment))
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


def attention_path(model: Any, batch: Batch) -> str:
    """What keeps the documents of a batch apart: a "mask", or places told to the attention of
    CPUs ("spans") or of GPUs ("documents").
    """
    if spans_for(inner(model), batch.segment_ids, apart=True) is not None:
        return "spans"
    return "mask" if documents_for(inner(model), batch.segment_ids) is None else "documents"


def _fewest(model: Any, batch: Batch, rows: list[int]) -> Batch:
    """The fewest rows that take the path of all, one of `rows` first.

    Scores take far more memory than the loss of a training step.
    """
    everyone, path = range(len(batch.segment_ids)), attention_path(model, batch)
    alone = ([row] for row in rows)
    pairs = ([row, other] for row in rows for other in everyone if other != row)
    for chosen in chain(alone, pairs):
        found = _rows(batch, chosen)
        if attention_path(model, found) == path:
            return found
    return _rows(batch, [rows[0], *(row for row in everyone if row != rows[0])])


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch(
        input_ids=batch.input_ids[rows],
        segment_ids=batch.segment_ids[rows],
        position_ids=batch.position_ids[rows],
        targets=batch.targets[rows],
        source=None if batch.source is None else _rows(batch.source, rows),
        labels=None if batch.labels is None else batch.labels[rows],
    )


def _without_targets(batch: Batch, segment: int) -> Batch:
    """Only the first row is scored, and of it not this segment."""
    targets = np.full_like(batch.targets, NO_TARGET)
    targets[0] = np.where(batch.segment_ids[0] == segment, NO_TARGET, batch.targets[0])
    labels = None
    if batch.labels is not None:
        labels = np.full_like(batch.labels, NO_TARGET)
        labels[0] = batch.labels[0]
        labels[0, segment - 1] = NO_TARGET
    return replace(batch, targets=targets, labels=labels)


def _perturbed(batch: Batch, segment: int) -> Batch:
    """Every token of the first row's segment becomes the next of those that the row has."""
    ids = batch.input_ids.copy()
    where = batch.segment_ids[0] == segment
    known = np.unique(ids[0])
    known = known if len(known) > 1 else np.array([ids[0, 0], ids[0, 0] ^ 1])
    known.sort()
    ids[0, where] = known[(np.searchsorted(known, ids[0, where]) + 1) % len(known)]
    source = None if batch.source is None else _perturbed(batch.source, segment)
    return replace(batch, input_ids=ids, source=source)
