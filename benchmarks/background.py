"""What requests in the background cost those that somebody waits for.

    python benchmarks/background.py [--shape small] [--weights int8] [--lines 8] [--out FILE.json]

One engine over a random model (engine_peers.py). One client asks for 16 tokens again and again:
alone, beside lines of 64 tokens that are always in the making at a priority just above the
background's, and beside the same in the background. The three take turns; `ratio` is the median
over the rounds of the client's median time over its median alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from engine_peers import BITS, SHAPES, random_model

from raylm.config.engine import EngineConfig
from raylm.engine.background import PRIORITY
from raylm.engine.convert import convert
from raylm.engine.openvino import open_ir
from raylm.engine.protocol import Engine, Request, Sampling

NUMBERS = itertools.count()  # of requests, in all rounds
PROMPT_TOKENS = 32
ROWS = {"alone": None, "lines beside": PRIORITY + 1, "lines in the background": PRIORITY}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder, ir = random_model(Path(scratch, "model"), options), Path(scratch, "ir")
        convert(folder, ir)
        engine = open_ir(ir, EngineConfig(num_threads=options.threads, prefix_cache=False))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
        try:
            for _ in range(options.rounds):
                for name, priority in ROWS.items():
                    found[name].append(asyncio.run(_round(engine, priority, options)))
        finally:
            engine.close()
    if options.out:
        options.out.write_text(json.dumps({"task": vars(options) | {"out": None}, "found": found}))
    print(f"| {options.lines} lines | p50, ms | ratio | lines/s |")
    print("|---|---|---|---|")
    for name, rounds in found.items():
        ratios = [one[0] / alone[0] for one, alone in zip(rounds, found["alone"], strict=True)]
        p50, rate = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"| {name} | {1000 * p50:.0f} | {statistics.median(ratios):.2f} | {rate:.1f} |")
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="m135")
    parser.add_argument("--weights", choices=("bf16", *BITS), default="int8")
    parser.add_argument("--lines", type=int, default=8)
    parser.add_argument("--asked", type=int, default=20, help="requests of the client a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


async def _round(
    engine: Engine, priority: int | None, options: argparse.Namespace
) -> tuple[float, float]:
    """The client's median time for an answer, and lines a second meanwhile."""
    num_done = 0

    async def ask(num_tokens: int, priority: int) -> float:
        number = next(NUMBERS)
        prompt = tuple((7919 * number + 104729 * place) % 997 for place in range(PROMPT_TOKENS))
        sampling = Sampling(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()
        async for _ in engine.generate(Request(str(number), prompt, sampling, priority=priority)):
            pass
        return time.perf_counter() - started

    async def lines(priority: int) -> None:
        nonlocal num_done
        while True:
            await ask(64, priority)
            num_done += 1

    tasks = []
    if priority is not None:
        tasks = [asyncio.create_task(lines(priority)) for _ in range(options.lines)]
        await asyncio.sleep(0.5)
        num_done = 0
    started = time.perf_counter()
    times = [await ask(16, 0) for _ in range(options.asked)]
    rate = num_done / (time.perf_counter() - started)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return statistics.median(times), rate


if __name__ == "__main__":
    main()
