"""Arrays are written as numpy writes them, and a full disk says so."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raylm.arrays import save_array

ARRAYS: dict[str, NDArray[Any]] = {
    "floats": np.linspace(0, 1, 5, dtype=np.float32),
    "table": np.arange(12).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "records": np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i8"), ("b", "<f4")]),
    "bytes": np.frombuffer(b"abc", np.uint8),
    "empty": np.empty((0, 4), np.int64),
    "number": np.array(7),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    array = ARRAYS[name]
    save_array(tmp_path / "ours.npy", array)
    read = np.load(tmp_path / "ours.npy", allow_pickle=False)
    assert read.dtype == array.dtype and np.array_equal(read, array)
    assert read.shape == array.shape


def test_a_file_is_what_numpy_writes(tmp_path: Path) -> None:
    save_array(tmp_path / "ours.npy", ARRAYS["records"])
    np.save(tmp_path / "numpy.npy", ARRAYS["records"])
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError) as full:
        save_array(Path("/dev/full"), np.zeros(100_000))
    assert full.value.errno == errno.ENOSPC
