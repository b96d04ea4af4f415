"""From a config section to a torch model, and from a torch model to a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, LlamaConfig, T5Config

from raylm.config.model import ModelConfig
from raylm.errors import ModelError
from raylm.model.folder import check_folder, special_token_ids, tokenizer_files
from raylm.model.presets import resolve_shape
from raylm.model.shapes import (
    RELATIVE_BUCKETS,
    TOKEN_TYPES,
    DecoderShape,
    EncoderDecoderShape,
    EncoderShape,
    Shape,
)

Head = Literal["causal", "seq2seq", "masked", "classes"]
"""What a model says: the next token, a target's next token, hidden tokens, a text's class."""
SpecialIds = dict[str, int | None]
_AUTO: dict[Head, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "masked": "AutoModelForMaskedLM",
    "classes": "AutoModelForSequenceClassification",
}


def llama_config(shape: DecoderShape, vocab_size: int, special_ids: SpecialIds) -> LlamaConfig:
    """The transformers config of a decoder. `special_ids`: bos, eos and pad token ids."""
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


def t5_config(shape: EncoderDecoderShape, vocab_size: int, special_ids: SpecialIds) -> T5Config:
    """The transformers config of an encoder-decoder, without dropout, which would make the
    loss depend on the number of workers. Decoding starts with the pad token, as T5's does, or
    end-of-text where there is none, as the data stage has it.
    """
    pad = special_ids.get("pad")
    pad = special_ids.get("eos") if pad is None else pad
    return T5Config(
        vocab_size=vocab_size,
        d_model=shape.hidden_size,
        d_kv=shape.head_size,
        d_ff=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_decoder_layers,
        num_heads=shape.num_heads,
        relative_attention_num_buckets=RELATIVE_BUCKETS,
        feed_forward_proj="gated-gelu" if shape.gated else "relu",
        dropout_rate=0.0,
        # transformers scales what a tied head reads, and ties whatever this says.
        tie_word_embeddings=shape.tie_embeddings,
        eos_token_id=special_ids.get("eos"),
        pad_token_id=pad,
        decoder_start_token_id=pad,
    )


def bert_config(shape: EncoderShape, vocab_size: int, special_ids: SpecialIds) -> BertConfig:
    """The transformers config of an encoder, without dropout (as arXiv 2212.14034), which would
    make the loss depend on the number of workers.
    """
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=shape.max_context_tokens,
        type_vocab_size=TOKEN_TYPES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # A row of the embedding that is padding is never learned; the pad token may be
        # end-of-text, which is.
        pad_token_id=None,
        bos_token_id=special_ids.get("bos"),
        eos_token_id=special_ids.get("eos"),
    )


def build_model(
    config: ModelConfig,
    *,
    seq_len: int,
    vocab_size: int,
    special_ids: SpecialIds,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
) -> Any:
    """A model in float32: new weights from torch's global generator, or a folder's.

    Args:
        head: None takes what the architecture is trained for first: the next token, a target,
            or hidden tokens.
        labels: names of the classes, where the head is `classes`.

    Raises:
        ModelError: the folder cannot be used.
        ConfigError: the shape does not fit.
    """
    if config.path is not None:
        folder = Path(config.path)
        model = load_model(folder, head or "causal", labels=labels)
        _check_fit(model.config, folder, seq_len, vocab_size)
    else:
        shape = resolve_shape(config, seq_len)
        model = model_of_shape(shape, vocab_size, special_ids, head=head, labels=labels)
    model.config.architectures = [type(model).__name__]
    return model


def model_of_shape(
    shape: Shape,
    vocab_size: int,
    special_ids: SpecialIds,
    *,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
) -> Any:
    """A transformers model of a shape, with new weights; arguments as `build_model`'s.

    Raises:
        ModelError: the architecture has no such head.
    """
    if isinstance(shape, DecoderShape) and head in (None, "causal"):
        model = transformers.LlamaForCausalLM(llama_config(shape, vocab_size, special_ids))
        _scale_residual_projections(model, shape.num_layers)
        return model
    if isinstance(shape, EncoderDecoderShape) and head in (None, "seq2seq"):
        return _t5(t5_config(shape, vocab_size, special_ids), tied=shape.tie_embeddings)
    if isinstance(shape, EncoderShape) and head in (None, "masked"):
        return transformers.BertForMaskedLM(bert_config(shape, vocab_size, special_ids))
    if isinstance(shape, EncoderShape) and head == "classes":
        settings = bert_config(shape, vocab_size, special_ids)
        _name_classes(settings, labels)
        return transformers.BertForSequenceClassification(settings)
    raise ModelError(f"a {type(shape).__name__} has no head {head!r}", code="model-head")


def _t5(config: T5Config, *, tied: bool) -> Any:
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        # transformers 5 always ties a new T5. A loaded one it leaves as its two matrices are.
        head = torch.empty_like(model.lm_head.weight)
        torch.nn.init.normal_(head, std=config.d_model**-0.5)
        model.lm_head.weight = torch.nn.Parameter(head)
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model


def load_model(
    folder: Path,
    head: Head,
    *,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> Any:
    """The model of a local Hugging Face folder, as the class that has the head: safetensors
    only, no remote code, nothing from the network. What a folder lacks of the head is new.

    Raises:
        ModelError: the folder cannot be used, or its architecture has no such head.
    """
    check_folder(folder)
    settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if labels is not None:
        _name_classes(settings, labels)
    try:
        return getattr(transformers, _AUTO[head]).from_pretrained(
            folder, config=settings, dtype=dtype, local_files_only=True, use_safetensors=True,
            ignore_mismatched_sizes=head == "classes",
        )  # fmt: skip
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ModelError(
            f"{folder} is of type {settings.model_type!r}, which has no head for {head!r}",
            code="model-head",
            hint="choose another train.objective, or another model",
        ) from error


def _name_classes(config: Any, labels: Sequence[str] | None) -> None:
    assert labels, "a classifier needs the names of its classes"
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}


def _check_fit(config: Any, folder: Path, seq_len: int, vocab_size: int) -> None:
    if config.vocab_size < vocab_size:
        raise ModelError(
            f"{folder} has embeddings for {config.vocab_size} tokens, the data's tokenizer "
            f"has {vocab_size}",
            code="vocab-mismatch",
            hint="set data.tokenizer.path to the model's own folder",
        )
    limit = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) is not None
    if limit is not None and limit < seq_len and not rotary:
        raise ModelError(
            f"{folder} has positions for {limit} tokens, data.seq_len is {seq_len}",
            code="context-too-short",
            hint=f"set data.seq_len to {limit} or less",
        )


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

    What is tied is written once, under its first name: transformers ties it again on load.
    """
    tensors: dict[str, torch.Tensor] = {}
    written = set()
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in written:
            written.add(place)
            tensors[name] = tensor.detach().contiguous().cpu()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = config.architectures or ["LlamaForCausalLM"]
    config.dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    text = json.loads(config.to_json_string(use_diff=True))
    if config.is_encoder_decoder and "shared.weight" in tensors:
        # transformers 5 forgets this of a T5, whose head is its own where it was written.
        text["tie_word_embeddings"] = "lm_head.weight" not in tensors
    (folder / "config.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")
    if _generates(config):
        generation = generation_config(special_token_ids(tokenizer_folder))
        start = getattr(config, "decoder_start_token_id", None)
        if config.is_encoder_decoder and start is not None:
            generation["decoder_start_token_id"] = start
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in tokenizer_files(tokenizer_folder):
        shutil.copyfile(file, folder / file.name)


def _generates(config: Any) -> bool:
    name = config.architectures[0]
    return not name.endswith(("ForMaskedLM", "ForSequenceClassification"))


def generation_config(special_ids: SpecialIds) -> dict[str, int | list[int]]:
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
