"""The engines of engine_peers.py, each in a process of its own that answers orders on stdin.

    python peer_engines.py NAME '{"model": FOLDER, "ir": FOLDER, "threads": 2, ...}'

An order is a line of JSON, the wave of answers to make: {"prompts": [[ids], ...], "new": 64}. Its
reply is a line too: when every answer had its first token and when all were done, in seconds, and
the tokens. Greedy, no prefix cache, no end of sequence. Imports only what its engine needs, for
its environment may hold nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Wave = Callable[[list[list[int]], int], dict[str, Any]]
CACHE_BYTES = 2**29


def raylm(task: dict[str, Any]) -> Wave:
    """raylm's engine, asked as a client in the same process would."""
    from raylm.config.engine import EngineConfig
    from raylm.engine.openvino import open_ir
    from raylm.engine.protocol import Request, Sampling

    config = EngineConfig(
        num_threads=task["threads"], kv_cache_bytes=CACHE_BYTES, prefix_cache=False,
        precision=task["precision"], kv_cache="u8", **task["engine"],
    )  # fmt: skip
    engine = open_ir(Path(task["ir"]), config)
    number = iter(range(10**9))

    def wave(prompts: list[list[int]], new: int) -> dict[str, Any]:
        sampling = Sampling(max_tokens=new, temperature=0.0, ignore_eos=True)

        async def one(prompt: list[int]) -> tuple[float, list[int]]:
            first, ids = 0.0, []
            async for chunk in engine.generate(Request(str(next(number)), tuple(prompt), sampling)):
                first = first or time.perf_counter()
                ids.extend(chunk.token_ids)
            return first, ids

        async def together() -> list[tuple[float, list[int]]]:
            return await asyncio.gather(*(one(prompt) for prompt in prompts))

        started = time.perf_counter()
        found = asyncio.run(together())
        ended = time.perf_counter()
        return {
            "prefill_s": max(first for first, _ in found) - started,
            "total_s": ended - started,
            "ids": [ids for _, ids in found],
        }

    return wave


def openvino_genai(task: dict[str, Any]) -> Wave:
    """OpenVINO GenAI's continuous batching over the very graph that raylm made."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 0
    scheduler.cache_size = max(1, CACHE_BYTES // 2**30)  # whole GiB
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    properties = {
        "INFERENCE_NUM_THREADS": task["threads"],
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": task["arithmetic"],
        "KV_CACHE_PRECISION": "u8",
    }
    if task["precision"] == "f32":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    pipeline = genai.ContinuousBatchingPipeline(task["ir"], scheduler, "CPU", properties)
    number = iter(range(10**9))

    def wave(prompts: list[list[int]], new: int) -> dict[str, Any]:
        config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        started = time.perf_counter()
        handles = [
            pipeline.add_request(next(number), ov.Tensor(np.array([prompt], np.int64)), config)
            for prompt in prompts
        ]
        ids: list[list[int]] = [[] for _ in prompts]
        prefilled = 0.0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for handle, so_far in zip(handles, ids, strict=True):
                if handle.can_read():
                    (output,) = handle.read().values()
                    so_far.extend(output.generated_ids)
            if not prefilled and all(ids):
                prefilled = time.perf_counter()
        return {
            "prefill_s": prefilled - started,
            "total_s": time.perf_counter() - started,
            "ids": ids,
        }

    return wave


def vllm(task: dict[str, Any]) -> Wave:
    """vLLM's CPU build over the model's own folder, in bf16 arithmetic as it comes."""
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(task["threads"]),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import EngineArgs, LLMEngine, SamplingParams

    arguments = EngineArgs(
        model=task["model"], skip_tokenizer_init=True, load_format="safetensors",
        max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=2048,
        kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False, generation_config="vllm",
    )  # fmt: skip
    engine = LLMEngine.from_engine_args(arguments)
    number = iter(range(10**9))

    def wave(prompts: list[list[int]], new: int) -> dict[str, Any]:
        sampling = SamplingParams(
            max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False
        )  # fmt: skip
        started, prefilled = time.perf_counter(), 0.0
        ids: dict[str, list[int]] = {}
        for prompt in prompts:
            name = str(next(number))
            ids[name] = []
            engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                ids[output.request_id] = list(output.outputs[0].token_ids)
            if not prefilled and all(ids.values()):
                prefilled = time.perf_counter()
        return {
            "prefill_s": prefilled - started,
            "total_s": time.perf_counter() - started,
            "ids": list(ids.values()),
        }

    return wave


def llama_cpp(task: dict[str, Any]) -> Wave:
    """llama.cpp's own measure of a batch; it makes its prompts itself and shows no tokens."""
    binary, gguf = task["llama_cpp"]

    def wave(prompts: list[list[int]], new: int) -> dict[str, Any]:
        batch, length = len(prompts), len(prompts[0])
        done = subprocess.run(
            [binary, "-m", gguf, "-c", str(batch * (length + new)), "-b", "2048", "-ub", "512",
             "-t", str(task["threads"]), "-tb", str(task["threads"]), "-npp", str(length),
             "-ntg", str(new - 1), "-npl", str(batch), "--output-format", "jsonl"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
        )  # fmt: skip
        line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        told = json.loads(line)
        return {"prefill_s": told["t_pp"], "total_s": told["t_pp"] + told["t_tg"], "ids": None}

    wave([[0] * 32], 32)  # the file is read once before
    return wave


ENGINES: dict[str, Callable[[dict[str, Any]], Wave]] = {
    "raylm": raylm,
    "openvino-genai": openvino_genai,
    "vllm": vllm,
    "llama.cpp": llama_cpp,
}


def main() -> None:
    name, task = sys.argv[1], json.loads(sys.argv[2])
    # Libraries write to stdout too: the replies go where it led, and it leads to stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    wave = ENGINES[name](task)
    print(json.dumps({"load_s": time.perf_counter() - started}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(wave(**json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
