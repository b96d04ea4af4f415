"""The global order of samples: a pure function of (seed, index), with no state to save.

Sample `index` of a run is number `index % num_samples` of epoch `index // num_samples`,
and each epoch is a pseudo-random permutation that can be entered anywhere: a Feistel
network over the next even power of two, walked until it falls below `num_samples` (Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). A resumed run therefore needs
one number, and any number of workers reads the same sequence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raylm.data.hashing import U64, mix64

_ROUNDS = 6


def sample_indices(seed: int, num_samples: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Samples number `start` to `start + count` of the run, int64 [count], O(count) work.

    Epochs follow each other without a gap; each holds every sample exactly once.
    """
    if num_samples < 1 or start < 0 or count < 0:
        raise ValueError(f"no such samples: {num_samples=}, {start=}, {count=}")
    epoch, position = np.divmod(np.arange(start, start + count, dtype=np.uint64), num_samples)
    key = mix64(mix64(np.full(1, seed, np.uint64)) ^ epoch)
    half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
    walked = _feistel(position, key, half_bits)
    # The domain is less than four times too large: a few walks end all of them.
    while (outside := walked >= num_samples).any():
        walked[outside] = _feistel(walked[outside], key[outside], half_bits)
    return walked.astype(np.int64)


def _feistel(values: U64, key: U64, half_bits: np.uint64) -> U64:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for number in range(_ROUNDS):
        secret = mix64(key + np.uint64(number))
        left, right = right, left ^ (mix64(right ^ secret) & mask)
    return (left << half_bits) | right
