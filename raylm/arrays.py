"""Arrays in files, in numpy's format (.npy)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def save_array(file: Path, array: NDArray[Any]) -> None:
    """Write an array as `np.save` does, but for its errors.

    On a full disk `np.save` raises an OSError without an errno, so that nobody can tell why.

    Raises:
        OSError: with the errno of the write that failed.
    """
    with file.open("wb") as stream:
        write_array(stream, array)


def write_array(stream: BinaryIO, array: NDArray[Any]) -> None:
    """The same into an open file."""
    array = np.asarray(array, order="C")
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, header)
    stream.write(array.data)
