"""A Hugging Face folder with int8 weights in compressed-tensors' pack-quantized format.

transformers and vLLM load it as it is; raylm's converter reads the same integers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import pack_to_int32
from safetensors.torch import load_file, save_file

from raylm.compress.int8 import quantize_weight
from raylm.errors import ModelError
from raylm.model.folder import read_config, tokenizer_files, weight_files

_BITS = 8


def write_int8_folder(source: Path, target: Path) -> dict[str, int]:
    """Quantize the model of one folder into another.

    Returns:
        Counts: quantized layers, and parameters inside and outside of them.

    Raises:
        ModelError: the folder is unsafe, quantized already, or has no linear layer.
    """
    config = read_config(source)
    if "quantization_config" in config:
        raise ModelError(
            f"{source} is quantized already", code="model-quantized", hint="give the original"
        )
    tensors: dict[str, torch.Tensor] = {}
    counts = {"quantized_layers": 0, "quantized_parameters": 0, "other_parameters": 0}
    ignored = []
    for name, tensor in sorted(read_tensors(source).items()):
        module = name.removesuffix(".weight")
        if is_linear(name, tensor) and not is_head(name):
            weight = quantize_weight(tensor, name)
            tensors[f"{module}.weight_packed"] = pack_to_int32(weight.integers, _BITS).contiguous()
            tensors[f"{module}.weight_scale"] = weight.scale.contiguous()
            tensors[f"{module}.weight_shape"] = torch.tensor(tensor.shape, dtype=torch.int64)
            counts["quantized_layers"] += 1
            counts["quantized_parameters"] += tensor.numel()
            continue
        if is_head(name):
            ignored.append(module)
        wide = tensor.ndim == 2
        tensors[name] = (tensor.to(torch.bfloat16) if wide else tensor).contiguous()
        counts["other_parameters"] += tensor.numel()
    if not counts["quantized_layers"]:
        raise ModelError(f"{source} has no linear layer to quantize", code="model-unknown")
    config["quantization_config"] = quantization_config(ignored or ["lm_head"])
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for file in [source / "generation_config.json", *tokenizer_files(source)]:
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    return counts


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files.

    Raises:
        ModelError: a file is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            tensors.update(load_file(file))
        except Exception as error:  # safetensors raises its own type, and OSError
            raise ModelError(f"{file} cannot be read: {error}", code="damaged-weights") from error
    return tensors


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer, by the names of transformers."""
    return tensor.ndim == 2 and name.endswith(".weight") and "embed" not in name


def is_head(name: str) -> bool:
    """Whether a tensor is the output head, which compressed-tensors' users leave alone."""
    return name == "lm_head.weight"


def quantization_config(ignored: list[str]) -> dict[str, Any]:
    """compressed-tensors' own description of what `write_int8_folder` writes."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": _BITS,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel",
                    "dynamic": False,
                },
            }
        },
        "ignore": ignored,
    }
