"""Packed rows as padded ones: for models that cannot keep a row's segments apart.

Some have positions that they count themselves, or make their masks themselves. They get each
segment as a row of its own; the loss is a sum over targets and stays the same, only padding is
computed in vain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raylm.data.shards import NO_TARGET, Batch

I64 = npt.NDArray[np.int64]


def padded(batch: Batch, padding: int | None) -> tuple[Batch, I64]:
    """Each segment as a row that starts with it, and the row of `batch` it comes from [m].

    Of labels, column 0 is the segment's. `padding` is the token after it, None is 0.
    """
    rows, starts, lengths = segment_ranges(batch.segment_ids)
    length = int(lengths.max())
    offsets = np.arange(length)
    inside = offsets < lengths[:, None]
    places = (starts[:, None] + offsets) * inside
    source = None
    if batch.source is not None:
        # Segments are numbered alike on both sides, from the start of each row.
        source, _ = padded(batch.source, padding)
    labels = None
    if batch.labels is not None:
        numbers = batch.segment_ids[rows, starts] - 1
        labels = batch.labels[rows, numbers][:, None]
    return (
        Batch(
            input_ids=np.where(inside, batch.input_ids[rows[:, None], places], padding or 0),
            segment_ids=inside.astype(np.int32),
            position_ids=np.where(inside, offsets, 0),
            targets=np.where(inside, batch.targets[rows[:, None], places], NO_TARGET),
            source=source,
            labels=labels,
        ),
        rows,
    )


def segment_ranges(segment_ids: npt.NDArray[np.int32]) -> tuple[I64, I64, I64]:
    """Row, first place and length of every segment of packed rows, in order; [m] each."""
    edge = np.ones_like(segment_ids, bool)
    edge[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    rows, starts = np.nonzero(edge)
    ends = np.append(starts[1:], 0)
    ends[np.append(rows[1:] != rows[:-1], True)] = segment_ids.shape[1]
    real = segment_ids[rows, starts] > 0
    return rows[real], starts[real], (ends - starts)[real]
