"""What the loss is of, at each position of packed rows: pure functions of arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raylm.data.stream import I64, numbered

NO_TARGET = -100
"""What a position without a target has as target; torch's cross entropy ignores it."""
SPAN = np.dtype([("start", "<i4"), ("length", "<i4")])
"""Positions of a row whose next token is a target."""


def of_next_tokens(ids: I64, segments: npt.NDArray[np.int32]) -> I64:
    """The next token of the same segment, NO_TARGET at its end and on padding; [n, seq_len]."""
    targets = np.full_like(ids, NO_TARGET)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    np.copyto(targets[:, :-1], ids[:, 1:], where=same)
    return targets


def of_spans(ids: I64, spans: npt.NDArray[np.void], counts: I64) -> I64:
    """The next token inside the spans (SPAN, `counts` of them in each row); [n, seq_len]."""
    targets = np.full_like(ids, NO_TARGET)
    row = np.repeat(np.arange(len(ids)), counts)
    begin = row * ids.shape[1] + spans["start"]
    length = spans["length"].astype(np.int64)
    places = np.repeat(begin, length) + numbered(length)
    targets.reshape(-1)[places] = ids.reshape(-1)[places + 1]
    return targets


def shifted_right(ids: I64, segments: npt.NDArray[np.int32], positions: I64, start: int) -> I64:
    """What a decoder reads to say `ids`: `start`, then all but the last token of a segment."""
    inputs = ids.copy()
    inner = (segments > 0) & (positions > 0)
    np.copyto(inputs[:, 1:], ids[:, :-1], where=inner[:, 1:])
    inputs[(segments > 0) & (positions == 0)] = start
    return inputs


def by_segment(values: npt.NDArray[np.int32], counts: I64) -> I64:
    """One value a segment as a matrix [n, most segments of a row], NO_TARGET where none is."""
    matrix = np.full((len(counts), int(counts.max(initial=0))), NO_TARGET, np.int64)
    matrix[np.repeat(np.arange(len(counts)), counts), numbered(counts)] = values
    return matrix
