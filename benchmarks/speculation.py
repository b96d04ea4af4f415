"""What prompt lookup gains or costs, by how often its guesses are right.

    python benchmarks/speculation.py [--shape m135] [--weights int8] [--tokens 4] [--out FILE.json]

Two engines over one random model (engine_peers.py), one that guesses and one that does not, answer
in turns in one process. An answer is made of a few tokens drawn evenly, forced by a bias: of one
token, every guess behind it is right; of k, one in k is. `--kinds 0` forces nothing and is greedy:
a random model repeats itself. `speed-up` is the median of the rounds' ratios of the whole time,
prompts of 32 tokens included; `differing` are texts that are not those without guesses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_peers import BITS, SHAPES, random_model

from raylm.config.engine import EngineConfig, PromptLookup
from raylm.engine.convert import convert
from raylm.engine.openvino import open_ir
from raylm.engine.protocol import Engine, Request, Sampling

FORCED = 100.0


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder, ir = random_model(Path(scratch, "model"), options), Path(scratch, "ir")
        convert(folder, ir)
        lookup = PromptLookup(num_tokens=options.tokens, ngram=1)
        engines = [
            open_ir(ir, EngineConfig(
                precision="f32", kv_cache=options.kv_cache, num_threads=options.threads,
                prefix_cache=False, speculation=speculation,
            ))
            for speculation in (None, lookup)
        ]  # fmt: skip
        print("| batch | kinds of tokens | guesses | right | plain tok/s | speed-up | differing |")
        print("|---|---|---|---|---|---|---|")
        found = []
        try:
            for batch in options.batches:
                for kinds in options.kinds:
                    found.append(_compare(engines, kinds, batch, options))
                    print(_row(found[-1]), flush=True)
        finally:
            for engine in engines:
                engine.close()
    if options.out:
        options.out.write_text(json.dumps({"task": vars(options) | {"out": None}, "found": found}))
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _row(one: dict[str, Any]) -> str:
    return (
        f"| {one['batch']} | {one['kinds']} | {one['guessed']} | {one['right']:.0%} "
        f"| {one['plain']:.0f} | {one['speed_up']:.2f} | {one['differing']} of {one['texts']} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="m135")
    parser.add_argument("--weights", choices=("bf16", *BITS), default="int8")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--kinds", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=4, help="guessed at a time")
    parser.add_argument("--kv-cache", choices=("f32", "bf16", "u8"), default="f32")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def _compare(
    engines: list[Engine], kinds: int, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    rates, ratios, differing = [], [], 0
    before = engines[1].stats()
    for number in range(options.rounds):
        took, texts = {}, {}
        for index in (0, 1) if number % 2 else (1, 0):
            took[index], texts[index] = asyncio.run(
                _wave(engines[index], kinds, batch, number, options.new)
            )
        differing += sum(one != other for one, other in zip(texts[0], texts[1], strict=True))
        rates.append(batch * options.new / took[0])
        ratios.append(took[0] / took[1])
    after = engines[1].stats()
    guessed = after.guessed_tokens_total - before.guessed_tokens_total
    right = (after.confirmed_tokens_total - before.confirmed_tokens_total) / max(1, guessed)
    return {
        "batch": batch, "kinds": kinds, "guessed": guessed, "differing": differing,
        "texts": batch * options.rounds, "right": right, "plain": statistics.median(rates),
        "speed_up": statistics.median(ratios), "ratios": ratios,
    }  # fmt: skip


async def _wave(
    engine: Engine, kinds: int, batch: int, number: int, new: int
) -> tuple[float, list[list[int]]]:
    async def one(index: int) -> list[int]:
        sampling = Sampling(
            max_tokens=new, temperature=FORCED, seed=1000 * number + index, ignore_eos=True,
            top_k=kinds or 1,
            logit_bias=tuple((token, FORCED) for token in range(100, 100 + kinds)),
        )  # fmt: skip
        prompt = tuple((7919 * index + 104729 * place + number) % 997 for place in range(32))
        request = Request(f"{number}-{index}", prompt, sampling)
        return [token async for chunk in engine.generate(request) for token in chunk.token_ids]

    started = time.perf_counter()
    texts = await asyncio.gather(*(one(index) for index in range(batch)))
    return time.perf_counter() - started, list(texts)


if __name__ == "__main__":
    main()
