"""Start the torch engine on a Hugging Face folder; nothing is derived, so nothing is cached."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.decoder import eos_token_ids
from raylm.engine.local import LocalEngine
from raylm.engine.processor import choose_precision, processor_flags
from raylm.engine.protocol import Capabilities
from raylm.engine.quantized import stored_precision
from raylm.engine.torch.batches import AnswerBatches, BatchLimits
from raylm.engine.torch.causal import CausalRows
from raylm.engine.torch.encoder_decoder import EncoderDecoderRows
from raylm.engine.torch.kind import Kind, class_names, kind_of, max_positions
from raylm.engine.torch.pooled import EncodeBatches, Encoder
from raylm.engine.torch.pooling import own_pooling
from raylm.engine.torch.runner import TorchRunner
from raylm.engine.weights import open_checkpoint
from raylm.errors import ConfigError, ModelError
from raylm.model.folder import check_folder, tokenizer_files

log = logging.getLogger(__name__)

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def load_torch(
    model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
) -> LocalEngine:
    """Start the engine.

    Raises:
        ModelError: the folder is incomplete, unsafe, or no model that the engine can use.
        ConfigError: the config asks for an 8-bit key-value cache or for speculation, which this
            engine lacks.
    """
    arithmetic = _arithmetic(config)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    settings = check_folder(model_dir)
    tokenizer_files(model_dir)
    kind = kind_of(settings)
    pooling = own_pooling(model_dir, kind)
    model = _read_model(model_dir, kind, _DTYPES[arithmetic])
    log.info("torch: %s, %s arithmetic", type(model).__name__, arithmetic)

    text_config = model.config.get_text_config()
    limit = _max_tokens(kind, settings, text_config, config)
    limits = BatchLimits(config.max_batch_size, config.max_batch_tokens)
    answers = None
    if "generate" in kind.features:
        per_token = _cache_bytes_per_token(text_config, _DTYPES[arithmetic].itemsize)
        num_tokens = config.kv_cache_bytes // per_token
        answers = _answers(model, kind, replace(limits, max_cached_tokens=num_tokens))
        limit = min(limit, num_tokens // (2 if kind.encodes_prompt else 1))
    eos = eos_token_ids(model_dir)
    capabilities = Capabilities(
        engine="torch",
        max_context_tokens=limit,
        vocab_size=text_config.vocab_size,
        eos_token_ids=eos,
        features=kind.features,
        weights=stored_precision(open_checkpoint(model_dir)),
        max_answer_tokens=limit if kind.encodes_prompt else None,
        end_of_input_id=eos[0] if eos and kind.architecture != "decoder" else None,
        poolings=(pooling, *(other for other in kind.poolings if other != pooling)),
        embedding_size=text_config.hidden_size,
    )
    encodings = EncodeBatches(_encoder(model, kind, pooling, settings), limits)
    runner = TorchRunner(answers, encodings)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return LocalEngine(runner, tokenizer, capabilities, config)


def _arithmetic(config: EngineConfig) -> str:
    if config.speculation is not None:
        raise ConfigError(
            "the torch engine does not speculate",
            code="unsupported-speculation",
            hint="set engine.speculation to null, or engine.kind to openvino",
        )
    if config.dynamic_quantization == "on":
        raise ConfigError(
            "the torch engine does not round activations",
            code="unsupported-quantization",
            hint="set engine.dynamic_quantization to auto, or engine.kind to openvino",
        )
    if config.kv_cache == "u8":
        raise ConfigError(
            "the torch engine has no 8-bit key-value cache",
            code="unsupported-kv-cache",
            hint="set engine.kv_cache to auto",
        )
    arithmetic = choose_precision(config, processor_flags()).arithmetic
    if config.kv_cache not in ("auto", arithmetic):
        raise ConfigError(
            f"the torch engine keeps keys and values in its arithmetic's type, {arithmetic}",
            code="unsupported-kv-cache",
            hint="set engine.kv_cache to auto",
        )
    return arithmetic


def _read_model(model_dir: Path, kind: Kind, dtype: torch.dtype) -> Any:
    try:
        model, found = getattr(transformers, kind.auto).from_pretrained(
            model_dir,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"transformers cannot load {model_dir} with {kind.auto}: {error}",
            code="unsupported-architecture",
        ) from error
    # transformers makes up what a folder lacks. Nobody here asks BERT's pooler for anything.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"{model_dir} lacks {len(missing)} weights of a {type(model).__name__}, the first "
            f"{missing[0]}",
            code="missing-weights",
        )
    return model.eval()


def _max_tokens(
    kind: Kind, settings: dict[str, Any], text_config: Any, config: EngineConfig
) -> int:
    limit = max_positions(kind, settings, getattr(text_config, "max_position_embeddings", None))
    if config.max_context_tokens is None:
        return limit
    # Relative positions go as far as one likes.
    return (
        config.max_context_tokens if kind.encodes_prompt else min(limit, config.max_context_tokens)
    )


def _answers(model: Any, kind: Kind, limits: BatchLimits) -> AnswerBatches:
    if not kind.encodes_prompt:
        return AnswerBatches(partial(CausalRows, model), limits)
    start_id = model.generation_config.decoder_start_token_id
    if start_id is None:
        raise ModelError(
            "neither generation_config.json nor config.json has a decoder_start_token_id",
            code="bad-config",
            hint="T5 models start with the padding token, 0 for the published ones",
        )
    return AnswerBatches(partial(EncoderDecoderRows, model, start_id), limits)


def _encoder(model: Any, kind: Kind, pooling: str, settings: dict[str, Any]) -> Encoder:
    pad_id = model.config.get_text_config().pad_token_id
    trunk = model.get_encoder() if kind.encodes_prompt else model.base_model
    return Encoder(
        model,
        partial(trunk, use_cache=False) if kind.architecture == "decoder" else trunk,
        pooling,
        0 if pad_id is None else pad_id,
        class_names(settings) if "classify" in kind.features else (),
        one_label=settings.get("problem_type") != "multi_label_classification",
    )


def _cache_bytes_per_token(config: Any, item_bytes: int) -> int:
    """Keys and values of one token in all layers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    return int(2 * layers * kv_heads * head_dim * item_bytes)
