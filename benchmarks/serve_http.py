"""Tokens per second and time to first token over HTTP, beside the same engine offline.

One engine replica behind one gateway on Ray Serve, against the same model in the same engine
with the same threads in this process: greedy, `--prompt` prompt and `--new` generated tokens,
1, 8 and 32 clients at a time. The HTTP side pays for HAProxy, gateway and clients on the same
two cores; both sides are measured in turn, the engine bound to one thread, so that the other
core carries them.

    python benchmarks/serve_http.py [MODEL] [--prompt 128] [--new 64]

MODEL is an artifact or a folder; without it a random Llama of 20M parameters is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from raylm.config import load_config
from raylm.config.engine import EngineConfig
from raylm.store import Store

CLIENTS = (1, 8, 32)
ANSWERS = 30
"""At each number of clients, in three waves at least."""
THREADS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, "store"))
        model = model_folder(arguments.model, Path(folder, "random-20m"))
        engine = EngineConfig(num_threads=THREADS)
        http = over_http(store, model, engine, arguments)
        bare = offline(store, model, engine, arguments)
    for clients in CLIENTS:
        row = {"clients": clients}
        for name, side in (("http", http), ("offline", bare)):
            row |= {f"{name}_{figure}": value for figure, value in side[clients].items()}
        row["throughput_ratio"] = round(row["http_tokens_per_s"] / row["offline_tokens_per_s"], 3)
        added = row["http_first_token_ms"] - row["offline_first_token_ms"]
        row["first_token_added_ms"] = round(added, 1)
        print(json.dumps(row))


def model_folder(given: str | None, made: Path) -> Path:
    """The model to measure."""
    if given is not None:
        folder = Path(given)
        return folder if folder.is_dir() else Store().resolve(given, "model").path
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM

    from raylm.model.build import llama_config, save_model
    from raylm.model.presets import PRESETS

    parts = made.with_name("tokenizer")
    for folder in (made, parts):
        folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    vocab |= {f"<{number}>": number for number in range(len(vocab), 32000)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(parts / "tokenizer.json"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(PRESETS["llama-10m"], 32000, {}))
    save_model(model.config, model.state_dict(), parts, made)
    return made


def prompts(number: int, length: int) -> list[list[int]]:
    """Prompts of token ids, all different."""
    return [[(7919 * i + 104729 * j) % 250 for j in range(length)] for i in range(number)]


Tokens = Callable[[list[int]], AsyncIterator[int]]


async def measure(clients: int, arguments: argparse.Namespace, ask: Tokens) -> dict[str, float]:
    """Some waves of `clients` answers at once; medians over the waves."""
    rates, firsts = [], []

    async def one(prompt: list[int]) -> int:
        started, count = time.perf_counter(), 0
        async for tokens in ask(prompt):
            if count == 0:
                firsts.append(time.perf_counter() - started)
            count += tokens
        return count

    for wave in range(max(3, ANSWERS // clients) + 1):
        started = time.perf_counter()
        every = prompts(clients * (wave + 1), arguments.prompt)[-clients:]
        counts = await asyncio.gather(*(one(prompt) for prompt in every))
        assert set(counts) == {arguments.new}, f"not every token came: {counts}"
        rates.append(sum(counts) / (time.perf_counter() - started))
        if wave == 0:  # a warm-up
            rates.clear()
            firsts.clear()
    return {
        "tokens_per_s": round(statistics.median(rates), 1),
        "first_token_ms": round(1000 * statistics.median(firsts), 1),
    }


def each(run: Callable[[int], Awaitable[dict[str, float]]]) -> dict[int, dict[str, float]]:
    """The figures of each number of clients, in one event loop."""

    async def all_of_them() -> dict[int, dict[str, float]]:
        return {clients: await run(clients) for clients in CLIENTS}

    return asyncio.run(all_of_them())


def offline(
    store: Store, model: Path, config: EngineConfig, arguments: argparse.Namespace
) -> dict[int, dict[str, float]]:
    """The engine in this process."""
    from raylm.engine.load import load
    from raylm.engine.protocol import Request, Sampling
    from raylm.serve.prepare import served_folder

    digest = served_folder(model).digest
    engine = load(model, config, cache_root=store.root / "engine", digest=digest)
    sampling = Sampling(max_tokens=arguments.new, temperature=0.0, ignore_eos=True)
    number = iter(range(10**9))

    async def ask(prompt: list[int]) -> AsyncIterator[int]:
        async for chunk in engine.generate(Request(str(next(number)), tuple(prompt), sampling)):
            if chunk.token_ids:
                yield len(chunk.token_ids)

    try:
        return each(lambda clients: measure(clients, arguments, ask))
    finally:
        engine.close()


def over_http(
    store: Store, model: Path, config: EngineConfig, arguments: argparse.Namespace
) -> dict[int, dict[str, float]]:
    """The same behind the gateway, asked by plain HTTP clients that read every event."""
    import aiohttp

    from raylm.deploy.cluster import connect, down, up

    loaded = load_config(None, ["serve.port=0", "serve.replicas=1"])
    up(store, loaded.config.cluster)
    try:
        with connect(store, loaded.config.cluster):
            from raylm.serve.app import deploy
            from raylm.serve.prepare import served_folder

            endpoint = deploy(
                [served_folder(model, "m")], loaded.config.serve, config,
                cache_root=store.root / "engine",
            )  # fmt: skip

            async def ask(prompt: list[int]) -> AsyncIterator[int]:
                body = {
                    "model": "m", "prompt": prompt, "max_tokens": arguments.new,
                    "temperature": 0, "ignore_eos": True, "stream": True,
                    "stream_options": {"include_usage": True},
                }  # fmt: skip
                async with client.post("completions", json=body) as response:
                    assert response.status == 200, await response.text()
                    told = 0
                    async for line in response.content:
                        if not line.startswith(b"data: {"):
                            continue
                        if told == 0:
                            told = 1
                            yield 1
                        elif b'"usage": {' in line:
                            yield json.loads(line[6:])["usage"]["completion_tokens"] - told

            async def run(clients: int) -> dict[str, float]:
                nonlocal client
                async with aiohttp.ClientSession(endpoint.url + "/") as client:
                    return await measure(clients, arguments, ask)

            client: aiohttp.ClientSession
            return each(run)
    finally:
        down(store, drain_s=0)


if __name__ == "__main__":
    main()
