"""How fast a model decodes on this machine: a few steps when it is loaded, which also warm it up.

In processor time, and not by the clock: replicas start side by side, and by the clock the same
model measured four times slower where others used the cores; in processor time within 6 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from raylm.engine.paged_model import PagedModel, TokenBatch

NUM_SEQUENCES = 8
_PAST_TOKENS = 15
_MAX_STEPS = 8
_MAX_S = 0.25  # a replica is to start in seconds; a large model's steps are long, and even


def decode_pace(
    model: PagedModel,
    *,
    processor_s: Callable[[], float] = time.process_time,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Tokens a second of processor time, decoding `NUM_SEQUENCES` short sequences; the best step.

    Call before the model has any other work: it uses the first blocks of its cache, and leaves
    them empty.
    """
    batch = _batch(min(NUM_SEQUENCES, model.num_blocks), model.block_size)
    model.forward(batch)  # the first step of a size makes its kernels
    began_s = clock()
    least_s = float("inf")
    for _ in range(_MAX_STEPS):
        step_began_s = processor_s()
        model.forward(batch)
        least_s = min(least_s, processor_s() - step_began_s)
        if clock() - began_s > _MAX_S:
            break
    model.scrub(list(range(len(batch.past_lens))))
    return len(batch.past_lens) / max(least_s, 1e-9)


def _batch(num_sequences: int, block_size: int) -> TokenBatch:
    """The next token of sequences that have a block each, and empty keys and values in it."""
    past = min(_PAST_TOKENS, block_size - 1)
    begins = np.arange(num_sequences + 1, dtype=np.int32)
    return TokenBatch(
        token_ids=np.arange(num_sequences, dtype=np.int64),
        position_ids=np.full(num_sequences, past, np.int64),
        past_lens=np.full(num_sequences, past, np.int32),
        subsequence_begins=begins,
        block_indices=begins[:-1].copy(),
        block_indices_begins=begins,
        max_context_len=past + 1,
        rows=np.arange(num_sequences, dtype=np.int64),
    )
