"""LoRA adapters as PEFT writes them, made without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "megatron_core": "megatron.core",
}


def write_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]], *, seed: int = 1, **changes: Any
) -> Path:
    """An adapter of random matrices for layers of shape (out, in); `changes` are of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = changes.get("rank_pattern", {})
    settings = SETTINGS | {"target_modules": sorted({n.rpartition(".")[2] for n in shapes})}
    settings |= changes
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer, (rows, columns) in shapes.items():
        rank = ranks.get(layer.rpartition(".")[2], settings["r"])
        for part, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            values = rng.normal(0, 0.2, shape).astype(np.float32)
            tensors[f"base_model.model.{layer}.lora_{part}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
