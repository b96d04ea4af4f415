"""The servers of serve_peers.py: how each is started, in its own environment, with which settings.

Run as a script, it is one of them: `peer_servers.py rayllm '{"model": FOLDER, "port": N, ...}'`, in
the environment that has Ray Serve LLM and vLLM; or `bare`, raylm's engine without a server, which
prints its figures and ends. Imports at the top are the standard library's alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1
CACHE_BYTES = 2**30
MAX_CONTEXT = 512
PYTHON = "RAYLM_VLLM_PYTHON"
LLAMA_CPP = "RAYLM_LLAMA_CPP"
HERE = str(Path(__file__))
_TOLD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(THREADS),
         "VLLM_CPU_KVCACHE_SPACE": str(CACHE_BYTES // 2**30), "VLLM_NO_USAGE_STATS": "1",
         "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}  # fmt: skip
"""Of vLLM: all cores, as the others have them, and a cache of their size."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server that stays in the foreground, or starts another and ends (`stop` ends that)."""

    name: str
    bits: str
    url: str
    start: list[str]
    stop: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)


def raylm(folder: Path, bits: str, store: Path, port: int, sets: list[str]) -> Server:
    """`raylm serve` with one replica that has all cores."""
    told = [f"engine.num_threads={THREADS}", f"engine.kv_cache_bytes={CACHE_BYTES}",
            f"engine.max_context_tokens={MAX_CONTEXT}", *sets]  # fmt: skip
    command = [sys.executable, "-m", "raylm"]
    start = [*command, "serve", str(folder), "--replicas", "1", "--port", str(port), "--detach",
             "--store", str(store), "-o", "json"]  # fmt: skip
    for setting in told:
        start += ["--set", setting]
    stop = [*command, "down", "--store", str(store)]
    return Server("raylm", bits, f"http://127.0.0.1:{port}/v1", start, stop)


def rayllm(folder: Path, port: int, python: str) -> Server:
    """Ray Serve LLM with vLLM's CPU build, one replica."""
    task = json.dumps({"model": str(folder), "port": port})
    url = f"http://127.0.0.1:{port}/v1"
    return Server("Ray Serve LLM", "bf16", url, [python, HERE, "rayllm", task], env=_TOLD)


def llama_cpp(gguf: Path, bits: str, port: int, binaries: Path, clients: int) -> Server:
    """llama.cpp's server with a slot for every client."""
    start = [str(binaries / "llama-server"), "--model", str(gguf), "--port", str(port),
             "--host", "127.0.0.1", "--threads", str(THREADS), "--parallel", str(clients),
             "--ctx-size", str(MAX_CONTEXT * clients), "--alias", "m"]  # fmt: skip
    return Server("llama.cpp server", bits, f"http://127.0.0.1:{port}/v1", start)


def run_rayllm(task: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR",
             object_store_memory=200 * 2**20)  # fmt: skip
    config = LLMConfig(
        model_loading_config={"model_id": "m", "model_source": task["model"]},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 100},
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": _TOLD},
        engine_kwargs={"max_model_len": MAX_CONTEXT, "dtype": "bfloat16", "max_num_seqs": 64},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": task["port"]})
    serve.run(build_openai_app({"llm_configs": [config]}), name="llm", blocking=False)
    over.wait()
    serve.shutdown()
    ray.shutdown()


def run_bare(task: dict[str, Any]) -> None:
    """The engine of `raylm serve` in this process, asked by as many clients: tokens/s of each."""
    from raylm.config.load import load_config
    from raylm.engine.load import load
    from raylm.engine.protocol import Engine, Request, Sampling
    from raylm.serve.prepare import prepare, served_folder

    config = load_config(None, task["sets"]).config.engine
    model = served_folder(Path(task["model"]))
    cache_root = Path(task["store"], "engine")
    if task["levels"] == []:  # only what is made once
        prepare([model], config, cache_root=cache_root)
        return
    sampling = Sampling(max_tokens=task["new"], temperature=0.0, ignore_eos=True)

    async def level(engine: Engine, clients: int, prompts: list[list[int]]) -> float:
        numbers = iter(range(len(prompts)))
        count, began_s = 0, 0.0

        async def client() -> None:
            nonlocal count, began_s
            for number in numbers:
                if number == clients:  # each has had one that does not count
                    count, began_s = 0, time.perf_counter()
                request = Request(f"{clients}-{number}", tuple(prompts[number]), sampling)
                async for chunk in engine.generate(request):
                    count += len(chunk.token_ids)

        await asyncio.gather(*(client() for _ in range(clients)))
        return count / (time.perf_counter() - began_s)

    engine = load(model.path, config, cache_root=cache_root, digest=model.digest)
    try:
        found = {
            str(clients): asyncio.run(level(engine, clients, _prompts(file)))
            for clients, file in task["levels"]
        }
    finally:
        engine.close()
    print(json.dumps(found))


def _prompts(file: str) -> list[list[int]]:
    return [json.loads(line)["prompt"] for line in Path(file).read_text().splitlines()]


if __name__ == "__main__":
    {"rayllm": run_rayllm, "bare": run_bare}[sys.argv[1]](json.loads(sys.argv[2]))
