"""Labels to classes: the names in order, and the class of each value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raylm.errors import DataError

I32 = npt.NDArray[np.int32]


def classes(values: Sequence[str | int], label: I32) -> tuple[list[str], I32]:
    """Names of the classes, and the class of each record [n].

    Classes are numbered in the order of the labels: texts by code point, numbers by size.

    Args:
        values: all labels, each once.
        label: place of each record's label in `values`, [n]. What no record has is no class.

    Raises:
        DataError: some labels are texts and some numbers, or there is only one.
    """
    used = [values[place] for place in np.unique(label).tolist()]
    texts = [value for value in used if isinstance(value, str)]
    if texts and len(texts) < len(used):
        number = next(value for value in used if not isinstance(value, str))
        raise DataError(
            f"some labels are texts ({min(texts)!r}), others numbers ({number})",
            code="data-mixed-labels",
            hint="write all labels in one way",
        )
    if len(used) < 2:
        raise DataError(
            f"all records have the same label ({used[0]!r}): there is nothing to tell apart",
            code="data-one-label",
            hint="add records of other labels; data.fields.label names the field that is read",
        )
    ordered: list[str | int] = sorted(used)
    number_of = {value: number for number, value in enumerate(ordered)}
    class_of = np.array([number_of.get(value, -1) for value in values], np.int32)
    return [str(value) for value in ordered], class_of[label]
