"""A Llama of a Hugging Face folder as GGUF, in f16; llama.cpp's own tool quantizes it further.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3). Only what the models
of these benchmarks need: untied or tied embeddings, a byte-level BPE without merges.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]
ALIGNMENT = 32
_F32, _F16 = 0, 1
_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(folder: Path, out: Path) -> None:
    """Write the model of `folder` to `out`; it must be a Llama with plain weights."""
    config = json.loads((folder / "config.json").read_text())
    tensors = list(_tensors(folder, config))
    pairs = _metadata(config, json.loads((folder / "tokenizer.json").read_text()))
    with out.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)))
        for key, value in pairs.items():
            file.write(_text(key) + _value(value))
        offset = 0
        for name, data in tensors:
            shape = data.shape[::-1]  # ggml counts from the innermost
            kind = _F16 if data.dtype == np.float16 else _F32
            file.write(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", kind, offset))
            offset += -(-data.nbytes // ALIGNMENT) * ALIGNMENT
        for _, data in tensors:
            _align(file)
            file.write(data.tobytes())
        _align(file)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    import torch
    from safetensors.torch import load_file

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.to(torch.float32).numpy()
        name = name.removeprefix("model.").removesuffix(".weight")
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                data = _interleaved(data, heads if part.endswith("q_proj") else kv_heads)
            name = f"blk.{layer}.{_NAMES[part]}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name]
        yield f"{name}.weight", data.astype(np.float16 if data.ndim > 1 else np.float32)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows as llama.cpp rotates them: pairs side by side, where transformers has halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _metadata(config: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    vocab = tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    head_size = config["hidden_size"] // config["num_attention_heads"]
    return {
        "general.architecture": "llama",
        "general.name": "bench",
        "general.file_type": np.uint32(1),
        "llama.context_length": np.uint32(config["max_position_embeddings"]),
        "llama.embedding_length": np.uint32(config["hidden_size"]),
        "llama.block_count": np.uint32(config["num_hidden_layers"]),
        "llama.feed_forward_length": np.uint32(config["intermediate_size"]),
        "llama.attention.head_count": np.uint32(config["num_attention_heads"]),
        "llama.attention.head_count_kv": np.uint32(config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": np.float32(config["rms_norm_eps"]),
        "llama.rope.freq_base": np.float32(config["rope_theta"]),
        "llama.rope.dimension_count": np.uint32(head_size),
        "llama.vocab_size": np.uint32(config["vocab_size"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.ones(len(tokens), np.int32),
        # It wants one; nothing is tokenized, prompts are ids.
        "tokenizer.ggml.merges": [f"{tokens[0]} {tokens[1]}"],
        "tokenizer.ggml.eos_token_id": np.uint32(config["eos_token_id"]),
        "tokenizer.ggml.add_bos_token": False,
    }


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, 5, len(value)) + value.tobytes()
    return struct.pack("<I", 6 if isinstance(value, np.float32) else 4) + value.tobytes()


def _align(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
