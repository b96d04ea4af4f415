"""What a model is made of: its stack, its parameters by part, its bytes and FLOPs; no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from raylm.errors import ModelError
from raylm.model.folder import Architecture, architecture_of, check_folder, weight_files
from raylm.model.presets import architecture
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape, Shape


@dataclass(frozen=True, slots=True)
class Description:
    """A model without its weights."""

    name: str
    architecture: Architecture
    vocab_size: int
    stack: dict[str, str]
    """What each stage of the forward pass is, in order."""
    parameters: dict[str, int]
    """By part, named `stack.part`."""
    seq_len: int
    flops_per_token: int | None
    """To train on one token of a sequence of `seq_len`; None where the shape is not known."""

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return sum(self.parameters.values())


def describe_shape(name: str, shape: Shape, vocab_size: int, seq_len: int) -> Description:
    """Of a preset, or of a folder whose shape is known."""
    return Description(
        name, architecture(shape), vocab_size, _stack(shape, vocab_size),
        shape.parameters(vocab_size), seq_len, shape.flops_per_token(vocab_size, seq_len),
    )  # fmt: skip


def describe_folder(folder: Path, seq_len: int) -> Description:
    """Of a Hugging Face folder: from its shape where it is one of ours, else from the names
    and sizes of its tensors.

    Raises:
        ModelError: the folder cannot be used, or is quantized and of an unknown shape.
    """
    config = check_folder(folder)
    shape = shape_of(config)
    if shape is not None:
        return describe_shape(str(folder), shape, config["vocab_size"], seq_len)
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is quantized and of type {config.get('model_type')!r}: its stored tensors "
            "do not tell its parameters",
            code="model-unknown",
            hint="show the model that it was made from",
        )
    kind = architecture_of(config)
    counts: Counter[str] = Counter()
    for file in weight_files(folder):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                counts[part_of(name, kind)] += prod(tensors.get_slice(name).get_shape())
    stack = {"type": f"{config.get('model_type')}, {(config.get('architectures') or ['?'])[0]}"}
    vocab_size = int(config.get("vocab_size", 0))
    return Description(str(folder), kind, vocab_size, stack, dict(counts), seq_len, None)


def shape_of(config: dict[str, Any]) -> Shape | None:
    """The shape that a config.json describes, where it is exactly one of ours."""
    get, kind = config.get, config.get("model_type")
    name = (get("architectures") or [""])[0]
    if kind == "llama" and not get("attention_bias") and not get("mlp_bias"):
        width, heads = config["hidden_size"], config["num_attention_heads"]
        if name != "LlamaForCausalLM" or (get("head_dim") or width // heads) != width // heads:
            return None
        return DecoderShape(
            width, config["intermediate_size"], config["num_hidden_layers"], heads,
            get("num_key_value_heads") or heads, get("max_position_embeddings", 2048),
            bool(get("tie_word_embeddings", False)),
        )  # fmt: skip
    if kind == "t5" and name == "T5ForConditionalGeneration":
        mlp = get("feed_forward_proj", "relu")
        buckets = get("relative_attention_num_buckets", 32)
        if buckets != 32 or mlp not in ("relu", "gated-gelu"):
            return None
        layers = config["num_layers"]
        return EncoderDecoderShape(
            config["d_model"], config["d_ff"], layers, get("num_decoder_layers") or layers,
            config["num_heads"], config["d_kv"], get("tie_word_embeddings", True) is not False,
            gated=mlp == "gated-gelu",
        )  # fmt: skip
    heads_of_bert = ("BertForMaskedLM", "BertForSequenceClassification")
    if kind == "bert" and name in heads_of_bert and get("type_vocab_size", 2) == 2:
        labels = len(get("id2label") or (0, 1)) if name == heads_of_bert[1] else None
        return EncoderShape(
            config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"],
            config["num_attention_heads"], get("max_position_embeddings", 512), labels,
        )  # fmt: skip
    return None


def part_of(name: str, kind: Architecture) -> str:
    """The part that a tensor of a transformers model belongs to, by its name."""
    lower = name.lower()
    if name.startswith(("lm_head", "cls.", "classifier", "score", "pre_classifier", "final_log")):
        if name.startswith("cls.predictions.transform"):
            return "head.transform"
        return (
            "head.classes"
            if name.startswith(("cl", "sc")) and "cls." not in name
            else ("head.tokens")
        )
    if ".pooler." in lower:
        return "head.pooler"
    normed = "norm" in lower or ".ln_" in lower
    if "embed" in lower or name.startswith("shared") or ".wte" in lower or ".wpe" in lower:
        if normed:
            return "embedding.norms"
        if "position" in lower or ".wpe" in lower:
            return "embedding.positions"
        return "embedding.types" if "token_type" in lower else "embedding.tokens"
    stack = "decoder" if kind == "decoder" else "encoder"
    if kind == "encoder-decoder" and "decoder." in name:
        stack = "decoder"
    if normed:
        return f"{stack}.norms"
    if any(word in lower for word in ("encdecattention", "encoder_attn", "crossattention")):
        return f"{stack}.cross_attention"
    return f"{stack}.attention" if "attn" in lower or "attention" in lower else f"{stack}.mlp"


def _stack(shape: Shape, vocab_size: int) -> dict[str, str]:
    width = shape.hidden_size
    embedding = f"{vocab_size:,} tokens x {width}"
    if isinstance(shape, DecoderShape):
        return {
            "embedding": f"{embedding}, rotary positions, {shape.max_context_tokens:,} at most",
            "decoder": f"{shape.num_layers} layers",
            "attention": f"{shape.num_heads} heads of {width // shape.num_heads}, "
            f"{shape.num_kv_heads} of keys and values, causal",
            "mlp": f"SwiGLU, {width} -> {shape.intermediate_size} -> {width}",
            "norms": "RMSNorm before attention and MLP, and at the end",
            "output": f"{width} -> {vocab_size:,}, {_tied(shape.tie_embeddings)}",
        }
    if isinstance(shape, EncoderDecoderShape):
        gate = "gated GELU" if shape.gated else "ReLU"
        return {
            "embedding": f"{embedding}, relative positions without a limit",
            "encoder": f"{shape.num_layers} layers",
            "decoder": f"{shape.num_decoder_layers} layers, each with attention to the encoder",
            "attention": f"{shape.num_heads} heads of {shape.head_size}",
            "mlp": f"{gate}, {width} -> {shape.intermediate_size} -> {width}",
            "norms": "RMSNorm before attention and MLP, and at the end",
            "output": f"{width} -> {vocab_size:,}, {_tied(shape.tie_embeddings)}",
        }
    classes = shape.num_labels
    output = f"{width} -> {vocab_size:,}, tied to the embedding, for hidden tokens"
    if classes is not None:
        output = f"{width} -> {classes} classes, from a text's first token"
    return {
        "embedding": f"{embedding}, {shape.max_context_tokens:,} absolute positions",
        "encoder": f"{shape.num_layers} layers",
        "attention": f"{shape.num_heads} heads of {width // shape.num_heads}, both ways",
        "mlp": f"GELU, {width} -> {shape.intermediate_size} -> {width}",
        "norms": "LayerNorm after attention and MLP",
        "output": output,
    }


def _tied(tied: bool) -> str:
    return "tied to the embedding" if tied else "a matrix of its own"
