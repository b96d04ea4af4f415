"""How raylm's settings and requests are told to vLLM: plain values, no import of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylm.config.engine import EngineConfig, VllmConfig
from raylm.engine.protocol import Capabilities, Request
from raylm.engine.vllm.draw import ORDER, order
from raylm.errors import ConfigError, ModelError
from raylm.model.folder import read_config

PROCESSOR = "raylm.engine.vllm.processor:KeyedDraw"
_DTYPES = {"auto": "auto", "f32": "float32", "bf16": "bfloat16"}


def environment(config: EngineConfig) -> dict[str, str]:
    """Variables that vLLM reads when it is imported."""
    found = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # The second runner has an interface for logits processors of its own.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # Threads are bound by their number; vLLM would leave a core for itself.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if config.num_threads is not None:
        found["OMP_NUM_THREADS"] = str(config.num_threads)
    return found


def engine_arguments(model_dir: Path, config: EngineConfig, vllm: VllmConfig) -> dict[str, Any]:
    """vLLM's `EngineArgs`.

    Raises:
        ConfigError: the config asks for what this engine lacks.
    """
    _check(config)
    memory = (
        {"gpu_memory_utilization": vllm.memory_share}
        if vllm.device == "cuda"
        else {"kv_cache_memory_bytes": config.kv_cache_bytes}
    )
    return memory | {
        "model": str(model_dir),
        "skip_tokenizer_init": True,  # texts are made by raylm, alike in all engines
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",  # the gateway's defaults, not the folder's
        "dtype": _DTYPES[config.precision],
        "max_model_len": config.max_context_tokens,
        "max_num_seqs": config.max_batch_size,
        # vLLM wants room for a token of every sequence.
        "max_num_batched_tokens": max(config.max_batch_tokens, config.max_batch_size),
        "enable_prefix_caching": config.prefix_cache,
        "enable_chunked_prefill": True,
        "scheduling_policy": "priority",
        # The sampler must know every token before the next one is drawn.
        "async_scheduling": False,
        "logits_processors": [PROCESSOR],
        "max_logprobs": -1,  # the gateway has a limit of its own
        "tensor_parallel_size": vllm.tensor_parallel,
        "distributed_executor_backend": "ray" if vllm.tensor_parallel > 1 else None,
    }


def sampling_arguments(
    request: Request, capabilities: Capabilities, max_tokens: int
) -> dict[str, Any]:
    """vLLM's `SamplingParams`, but for `output_kind`; `max_tokens` counts the emitted ones too.

    Text, stop strings and what steers the choice are raylm's own; vLLM is left with the end tokens
    and the count, so that it never makes a token too many.
    """
    sampling = request.sampling
    told = order(request, capabilities)
    wants_prompt = not request.emitted_ids  # a continued answer has had its prompt's logprobs
    return {
        "temperature": 0.0,
        "max_tokens": max_tokens - len(request.emitted_ids),
        "stop_token_ids": [] if sampling.ignore_eos else list(capabilities.eos_token_ids),
        "ignore_eos": True,  # vLLM's own notion of it comes from a tokenizer that is not there
        "detokenize": False,
        "logprobs": sampling.num_logprobs,
        "prompt_logprobs": sampling.num_prompt_logprobs if wants_prompt else None,
        "extra_args": None if told is None else {ORDER: told},
    }


def is_decoder(model_dir: Path) -> bool:
    """Whether a folder has what vLLM answers with: a decoder and a head for its vocabulary."""
    architectures = read_config(model_dir).get("architectures") or [""]
    return str(architectures[0]).endswith("ForCausalLM")


def check_decoder(model_dir: Path) -> None:
    """See that vLLM could answer with a model.

    Raises:
        ModelError: it is of another kind.
    """
    if not is_decoder(model_dir):
        raise ModelError(
            f"the vllm engine answers with decoders, and {model_dir} is none",
            code="unsupported-architecture",
            hint="set engine.kind=torch, which runs other models of transformers",
        )


def _check(config: EngineConfig) -> None:
    if config.speculation is not None:
        raise ConfigError(
            "the vllm engine does not speculate: its drafts pass by the sampler that is keyed by "
            "seed and position",
            code="unsupported-speculation",
            hint="set engine.speculation to null, or engine.kind to openvino",
        )
    if config.dynamic_quantization == "on":
        raise ConfigError(
            "the vllm engine rounds activations as the model's folder says, and no others",
            code="unsupported-quantization",
            hint="set engine.dynamic_quantization to auto, or engine.kind to openvino",
        )
    if config.kv_cache not in ("auto", config.precision):
        raise ConfigError(
            "the vllm engine keeps keys and values in its arithmetic's type",
            code="unsupported-kv-cache",
            hint="set engine.kv_cache to auto",
        )
