"""Tokens per second of a model in the engine that would serve it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Engine, Request, Sampling

_PROMPT_TOKENS = 64
_NEW_TOKENS = 64
_BATCH = 8
_ROUNDS = 2


def measure_speed(
    folder: Path, digest: str, cache_root: Path, engine_config: EngineConfig, threads: int
) -> float:
    """Generated tokens per second, 8 sequences at once, the better of two rounds."""
    engine = load(
        folder,
        # What is guessed is no property of the model, and of random prompts nothing can be.
        engine_config.model_copy(update={"num_threads": threads, "speculation": None}),
        cache_root=cache_root,
        digest=digest,
    )
    try:
        return max(asyncio.run(_round(engine, number)) for number in range(_ROUNDS))
    finally:
        engine.close()


async def _round(engine: Engine, number: int) -> float:
    vocab = engine.capabilities().vocab_size
    first_s: list[float] = []

    async def one(index: int) -> int:
        prompt = tuple((index * 7919 + i * 104729) % vocab for i in range(_PROMPT_TOKENS))
        sampling = Sampling(max_tokens=_NEW_TOKENS, temperature=0.0, ignore_eos=True)
        count = 0
        async for chunk in engine.generate(Request(f"{number}-{index}", prompt, sampling)):
            if count == 0 and chunk.token_ids:
                first_s.append(time.perf_counter())
            count += len(chunk.token_ids)
        return count

    counts = await asyncio.gather(*(one(index) for index in range(_BATCH)))
    # From the earliest first token on: prompts that are still being read count as time.
    return (sum(counts) - _BATCH) / (time.perf_counter() - min(first_s))
