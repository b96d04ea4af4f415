"""Choose and start an engine for a model folder."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from raylm.config.engine import EngineConfig
from raylm.engine.decoder import parse_decoder
from raylm.engine.protocol import Engine
from raylm.engine.quantized import check_quantization
from raylm.engine.vllm.arguments import is_decoder
from raylm.errors import ModelError
from raylm.model.folder import read_config
from raylm.registry import Registry

log = logging.getLogger(__name__)

ENGINES = Registry(
    "engine",
    {
        "openvino": "raylm.engine.openvino:load_openvino",
        "torch": "raylm.engine.torch.load:load_torch",
        "vllm": "raylm.engine.vllm.load:load_vllm",
    },
)
"""Each name stands for a `Loader`."""

# Reasons for which `auto` goes on to torch; anything else is wrong with the model itself.
_NOT_COVERED = frozenset(
    {"unsupported-architecture", "unsupported-dtype", "no-paged-attention", "conversion-failed"}
)


class Loader(Protocol):
    """What a name in `ENGINES` stands for."""

    def __call__(
        self, model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
    ) -> Engine:
        """Start an engine; see `load`."""
        ...


def load(model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str) -> Engine:
    """Start the engine that `config.kind` names, or the fastest that can run the model.

    `digest` names the model's content; derived files are kept at `cache_root/<digest>/`.
    `auto` is vllm for decoders where the config names a vLLM on CUDA; else openvino where its
    converter covers the model, and torch otherwise: for other decoders, and for all encoders and
    encoder-decoders.

    Raises:
        ConfigError: there is no engine of that name, or it cannot do what the config asks.
        ModelError: the folder is incomplete, unsafe, or of an unknown architecture.
        MissingExtra: the engine's library is not installed.
    """
    if config.kind != "auto":
        return _loader(config.kind)(model_dir, config, cache_root=cache_root, digest=digest)
    if takes_vllm(model_dir, config):
        if find_spec("vllm") is not None:
            return _loader("vllm")(model_dir, config, cache_root=cache_root, digest=digest)
        log.info("vLLM is in another environment than this process; %s runs without", model_dir)
    reason = why_not_openvino(model_dir)
    if reason is None:
        try:
            return _loader("openvino")(model_dir, config, cache_root=cache_root, digest=digest)
        except ModelError as error:
            if error.code not in _NOT_COVERED:
                raise
            reason = error.message
    log.info("engine torch for %s: %s", model_dir, reason)
    return _loader("torch")(model_dir, config, cache_root=cache_root, digest=digest)


def takes_vllm(model_dir: Path, config: EngineConfig) -> bool:
    """Whether vLLM answers for a model, in an environment of its own.

    Known before a replica starts, for it decides which interpreter that runs in.
    """
    if config.kind != "auto":
        return config.kind == "vllm"
    if config.vllm is None or config.vllm.device != "cuda":
        return False
    if (model_dir / "modules.json").is_file():
        return False  # a model for embeddings
    return is_decoder(model_dir)


def why_not_openvino(model_dir: Path) -> str | None:
    """Why the OpenVINO engine cannot run a model, as far as its config.json tells; or None."""
    if find_spec("openvino") is None:
        return "the package openvino is not installed"
    config = read_config(model_dir)
    if (model_dir / "modules.json").is_file():
        return "modules.json says that the model is for embeddings"
    try:
        parse_decoder(config)
        check_quantization(config)
    except ModelError as error:
        return error.message
    return None


def _loader(name: str) -> Loader:
    return cast(Loader, ENGINES.load(name))
