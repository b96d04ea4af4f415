"""A LoRA adapter in PEFT's format: adapter_config.json and adapter_model.safetensors, checked.

What it adds to a linear layer's weight is `scale * B @ A` (arXiv 2106.09685), with `scale` =
alpha / rank, or alpha / sqrt(rank) where it is rank-stabilized (arXiv 2312.03732). An adapter that
is more than that is refused by the name of what it has more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.engine.weights import StoredTensor, map_file
from raylm.errors import ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Keys of peft.LoraConfig that say what is read here, or how the adapter was trained. Any other
# one changes what it adds, and is refused unless it is empty; so are those of later versions.
_READ = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) change the base's own weights first.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_LAYER = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one weight."""

    a: StoredTensor
    """[rank, in]."""
    b: StoredTensor
    """[out, rank]."""
    scale: float
    is_transposed: bool
    """The weight is [in, out], as in GPT-2."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.is_transposed else shape

    def delta(self) -> NDArray[np.float32]:
        """What is added."""
        product = np.float32(self.scale) * (self.b.as_float32() @ self.a.as_float32())
        return product.T if self.is_transposed else product


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter: what it adds, by the name of the layer."""

    folder: Path
    layers: Mapping[str, LowRank]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, if it is that of a plain LoRA adapter.

    Raises:
        ModelError: it is missing or unreadable, or says something that would be left out.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} is no adapter: it has no {CONFIG}",
            code="missing-adapter",
            hint=f"give a folder with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes it",
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", code="bad-adapter") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object", code="bad-adapter")
    if config.get("peft_type") != "LORA":
        raise _unsupported(folder, "peft_type", config.get("peft_type"))
    for name, value in config.items():
        if name not in _READ and value not in (None, False, "", [], {}):
            raise _unsupported(folder, name, value)
    if config.get("bias", "none") != "none":
        raise _unsupported(folder, "bias", config["bias"])
    if config.get("init_lora_weights", True) not in _STARTS:
        raise _unsupported(folder, "init_lora_weights", config["init_lora_weights"])
    return config


def check_base_name(folder: Path, names: Collection[str], trained_on: str | None) -> None:
    """See that an adapter says to be of a model with one of these names, where it names one.

    Only the last part of a path or of `owner/name` counts, in any case. `trained_on` is what the
    user says that the adapter's name for it is.

    Raises:
        ModelError: it is of another one.
    """
    said = read_adapter_config(folder).get("base_model_name_or_path")
    known = {_last(name) for name in (*names, *((trained_on,) if trained_on else ()))}
    if not said or _last(str(said)) in known:
        return
    raise ModelError(
        f"the adapter {folder} was trained on {said!r}, and is to be merged into "
        f"{', '.join(repr(name) for name in names)}",
        code="adapter-of-another-model",
        hint=f"if that is the same model, say so: `trained_on: {said}` beside `adapter`",
    )


def read_adapter(folder: Path, model_type: str) -> Adapter:
    """Read an adapter and check it against its own configuration.

    Raises:
        ModelError: it is incomplete, damaged, contradicts itself, or is more than LoRA.
    """
    config = read_adapter_config(folder)
    is_transposed = bool(config.get("fan_in_fan_out"))
    # GPT-2 and its kin have transformers' Conv1D where others have linear layers.
    if is_transposed != (model_type in ("gpt2", "openai-gpt")):
        raise ModelError(
            f"{folder / CONFIG}: fan_in_fan_out is {is_transposed}, which does not go with a "
            f"model of type {model_type!r}",
            code="adapter-misfit",
        )
    pairs = _pairs(folder)
    _check_targets(folder, config.get("target_modules"), pairs)
    return Adapter(
        folder,
        {
            layer: _low_rank(folder, config, layer, parts, is_transposed)
            for layer, parts in sorted(pairs.items())
        },
    )


def _pairs(folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """The matrices by layer."""
    if not (folder / WEIGHTS).is_file():
        is_pickled = (folder / "adapter_model.bin").is_file()
        raise ModelError(
            f"{folder} has no {WEIGHTS}" + (", only a pickle, which can run code" * is_pickled),
            code="pickled-weights" if is_pickled else "missing-adapter",
            hint="save it with PEFT's save_pretrained(folder, safe_serialization=True)",
        )
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in map_file(folder / WEIGHTS).items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise ModelError(
                f"{folder / WEIGHTS} holds {name!r}, which is no part of a LoRA adapter of linear "
                "layers",
                code="unsupported-adapter",
            )
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if not pairs:
        raise ModelError(f"{folder / WEIGHTS} holds nothing", code="bad-adapter")
    return pairs


def _check_targets(folder: Path, targets: Any, layers: Collection[str]) -> None:
    """A list of targets must be what there is; an expression is not followed."""
    if not isinstance(targets, list):
        return
    for layer in layers:
        if not any(_is_of(layer, target) for target in targets):
            raise ModelError(
                f"{folder}: {layer} has an adapter, and is none of target_modules "
                f"({', '.join(targets)})",
                code="bad-adapter",
            )
    for target in targets:
        if not any(_is_of(layer, target) for layer in layers):
            raise ModelError(
                f"{folder}: target_modules names {target!r}, and no layer of that name has one",
                code="bad-adapter",
            )


def _low_rank(
    folder: Path,
    config: Mapping[str, Any],
    layer: str,
    parts: Mapping[str, StoredTensor],
    is_transposed: bool,
) -> LowRank:
    if len(parts) != 2:
        raise ModelError(f"{folder}: {layer} has only lora_{min(parts)}", code="bad-adapter")
    a, b = parts["A"], parts["B"]
    rank = _of_layer(config, "rank_pattern", "r", layer)
    alpha = _of_layer(config, "alpha_pattern", "lora_alpha", layer)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ModelError(
            f"{folder}: {layer} has matrices of shapes {a.shape} and {b.shape}, which are no "
            "[rank, in] and [out, rank]",
            code="bad-adapter",
        )
    if a.shape[0] != rank:
        raise ModelError(
            f"{folder}: {layer} has rank {a.shape[0]}, and {CONFIG} says {rank:g}",
            code="bad-adapter",
        )
    for tensor in (a, b):
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise _unsupported(folder, f"{layer}: dtype", tensor.dtype)
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return LowRank(a, b, alpha / root, is_transposed)


def _of_layer(config: Mapping[str, Any], pattern: str, common: str, layer: str) -> float:
    """A layer's own rank or alpha, or that of all; as PEFT looks it up."""
    value = config.get(common)
    for key, own in (config.get(pattern) or {}).items():
        try:
            is_own = re.match(rf"(.*\.)?({key})$", layer) is not None
        except re.error as error:
            raise ModelError(
                f"{CONFIG}: {pattern} has {key!r}, which is no expression: {error}",
                code="bad-adapter",
            ) from None
        if is_own:
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelError(f"{CONFIG}: {common} of {layer} is {value!r}", code="bad-adapter")
    return value


def _is_of(layer: str, target: str) -> bool:
    return f".{layer}".endswith(f".{target}")


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()


def _unsupported(folder: Path, name: str, value: Any) -> ModelError:
    return ModelError(
        f"{folder / CONFIG} has {name}={json.dumps(value)}, which raylm does not merge",
        code="unsupported-adapter",
        hint="merge it where it was trained (merge_and_unload), and serve the whole model",
    )
