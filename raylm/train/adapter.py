"""The adapter of a LoRA training beside the merged model, in PEFT's own format.

    <model>/adapter/adapter_config.json
    <model>/adapter/adapter_model.safetensors

The model stays a plain one: transformers and vLLM look for an adapter in the folder itself, and
not below it. PEFT, vLLM (`--lora-modules`) and `raylm serve` read the subfolder on top of the base.
The base is named by its folder's name, which is its digest where it is an artifact of raylm, and
not by its place: the same training has the same adapter on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from raylm.config.train import LoraConfig
from raylm.train.lora import LoraLinear

ADAPTER = "adapter"
_PREFIX = "base_model.model."
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
}


def write_adapter(model: Any, config: LoraConfig, base: str, folder: Path) -> None:
    """Write what a training has learned beside the base's weights into `folder`.

    Args:
        model: with adapters, its weights whole (under ZeRO 3: gathered).
        base: what the adapter's configuration calls the model it was trained on.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_b
    whole = _whole(model, layers)
    for name in whole:
        for part, tensor in model.get_submodule(name).named_parameters():
            tensors[f"{_PREFIX}{name}.{part}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    kind = type(model).__name__
    values = {
        "peft_type": "LORA",
        "task_type": next((task for end, task in _TASKS.items() if kind.endswith(end)), None),
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": target_names(list(layers), linear),
        "modules_to_save": whole or None,
    }
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def target_names(chosen: list[str], linear: list[str]) -> list[str]:
    """Names of the layers for PEFT, which takes every layer that ends with one: their last parts
    where those mean no other layer, else whole."""
    last = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name in linear if name.rpartition(".")[2] in last}
    return sorted(last if meant == set(chosen) else chosen)


def _whole(model: Any, layers: dict[str, LoraLinear]) -> list[str]:
    """Layers that are trained whole: a classifier's head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name not in layers
        and any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
