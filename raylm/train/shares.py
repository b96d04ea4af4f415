"""How the samples of one optimizer step are cut over ranks and micro-batches; pure.

The global batch is laid out micro-batch after micro-batch, and within each rank after rank, so
that any number of workers trains on the same samples in a step. Where the batch does not come
out even (an elastic run between two sizes), some ranks have fewer samples in their last
micro-batch, or none: every sample counts once whatever the cut, since the loss is a sum that
is divided by the targets of the whole batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def num_micro_batches(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches of a step on each rank: the same on all, as collectives need it."""
    return -(-global_batch // (micro_batch * world_size))


def share(
    global_batch: int, micro_batch: int, world_size: int, rank: int
) -> list[npt.NDArray[np.int64]]:
    """Places in the global batch that a rank takes: one array for each micro-batch.

    Arrays hold at most `micro_batch` places, the last ones perhaps fewer or none.
    """
    parts = []
    for index in range(num_micro_batches(global_batch, micro_batch, world_size)):
        first = index * world_size * micro_batch
        places = np.arange(first, min(first + world_size * micro_batch, global_batch))
        # An even cut: the last micro-batch is spread over all ranks, not given to the first.
        parts.append(np.array_split(places, world_size)[rank].astype(np.int64))
    return parts
