"""Start vLLM on a Hugging Face folder, behind the step loop of all engines in this process."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import psutil
from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.decoder import eos_token_ids
from raylm.engine.local import LocalEngine
from raylm.engine.protocol import Capabilities
from raylm.engine.quantized import stored_precision
from raylm.engine.vllm.arguments import check_decoder, engine_arguments, environment
from raylm.engine.vllm.interpreter import named
from raylm.engine.vllm.orphans import Guard
from raylm.engine.weights import open_checkpoint
from raylm.errors import HostError, ModelError
from raylm.model.folder import check_folder, tokenizer_files

log = logging.getLogger(__name__)


def load_vllm(
    model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
) -> LocalEngine:
    """Start the engine; this process must be one of the environment that has vLLM.

    Raises:
        ConfigError: the config names no vLLM, or asks for what this engine lacks.
        HostError: vLLM is not installed here.
        ModelError: the folder is incomplete, unsafe, or no model that vLLM can run.
    """
    arguments = engine_arguments(model_dir, config, named(config.vllm))
    check_folder(model_dir)
    check_decoder(model_dir)
    tokenizer_files(model_dir)
    if find_spec("vllm") is None:
        raise HostError(
            "vLLM is not installed in this process's environment",
            code="no-vllm",
            hint="`raylm serve` starts its replicas with engine.vllm.python",
        )
    os.environ.update(environment(config))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from raylm.engine.vllm.runner import Gauges, VllmRunner

    gauges = Gauges(None)
    before = set(psutil.Process().children(recursive=True))
    try:
        engine = LLMEngine.from_engine_args(
            EngineArgs(**arguments), stat_loggers=[lambda *_: gauges]
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(
            f"vLLM does not start with {model_dir}: {error}",
            code="vllm-failed",
            hint="its own words are in the replica's log, above this",
        ) from error
    started = set(psutil.Process().children(recursive=True)) - before
    guard = Guard(process.pid for process in started)
    settings = engine.vllm_config
    capabilities = Capabilities(
        engine="vllm",
        max_context_tokens=settings.model_config.max_model_len,
        vocab_size=settings.model_config.get_vocab_size(),
        eos_token_ids=eos_token_ids(model_dir),
        # Grammars would have to be followed where vLLM samples; it has its own, which begin anew
        # with every request and cannot continue an answer.
        features=frozenset({"generate", "logprobs", "prompt_logprobs", "continue", "cancel"}),
        weights=stored_precision(open_checkpoint(model_dir)),
    )
    num_blocks = settings.cache_config.num_gpu_blocks or 0
    runner = VllmRunner(engine, gauges, guard, capabilities, num_blocks)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return LocalEngine(runner, tokenizer, capabilities, config, steers=False)
