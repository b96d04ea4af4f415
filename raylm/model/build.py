"""From a config section to a torch model, and from a torch model to a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from raylm.config.model import ModelConfig
from raylm.model.folder import check_folder, special_token_ids, tokenizer_files
from raylm.model.presets import Shape, resolve_shape


def llama_config(shape: Shape, vocab_size: int, special_ids: dict[str, int | None]) -> LlamaConfig:
    """The transformers config of a shape. `special_ids`: bos, eos and pad token ids."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_context_tokens,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=special_ids.get("bos"),
        eos_token_id=special_ids.get("eos"),
        pad_token_id=special_ids.get("pad"),
    )


def build_model(
    config: ModelConfig, *, seq_len: int, vocab_size: int, special_ids: dict[str, int | None]
) -> Any:
    """A causal model in float32: new weights from torch's global generator, or a folder's.

    Raises:
        ModelError: the folder cannot be used.
        ConfigError: the shape does not fit.
    """
    if config.path is not None:
        folder = Path(config.path)
        check_folder(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    shape = resolve_shape(config, seq_len)
    model = LlamaForCausalLM(llama_config(shape, vocab_size, special_ids))
    _scale_residual_projections(model, shape.num_layers)
    return model


def _scale_residual_projections(model: Any, num_layers: int) -> None:
    """Divide what writes into the residual stream by sqrt(2 layers) (GPT-2, section 2.3)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * num_layers) ** -0.5)


def save_model(
    config: Any, state: dict[str, torch.Tensor], tokenizer_folder: Path, folder: Path
) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors, tokenizer, generation config.

    A tied head is not written twice: transformers ties it again on load.
    """
    tied = bool(config.tie_word_embeddings)
    tensors = {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in state.items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = (
        [config.architectures[0]] if config.architectures else ["LlamaForCausalLM"]
    )
    dtype = next(iter(tensors.values())).dtype
    config.dtype = str(dtype).removeprefix("torch.")
    text = json.loads(config.to_json_string(use_diff=True))
    (folder / "config.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")
    generation = generation_config(special_token_ids(tokenizer_folder))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in tokenizer_files(tokenizer_folder):
        shutil.copyfile(file, folder / file.name)


def generation_config(special_ids: dict[str, int | None]) -> dict[str, int | list[int]]:
    """Where answers begin and end: a document's end, and a chat turn's where there is one."""
    found: dict[str, int | list[int]] = {
        f"{name}_token_id": token
        for name in ("bos", "eos", "pad")
        if (token := special_ids.get(name)) is not None
    }
    ends = [token for name in ("eos", "turn_end") if (token := special_ids.get(name)) is not None]
    if len(set(ends)) > 1:
        found["eos_token_id"] = ends
    return found
