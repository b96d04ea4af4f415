"""Rows packed by hand, and tiny models of every architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration

from raylm.data.shards import NO_TARGET, Batch
from raylm.model.build import model_of_shape
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape

VOCAB = 50
PAD = 3
Documents = Sequence[Sequence[Sequence[int]]]
"""Rows of documents of token ids."""


def draw(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Documents of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, VOCAB, n).tolist() for n in lengths]


def pack(rows: Documents, length: int) -> Batch:
    """Rows of documents; the next token of the same document is the target."""
    ids = np.full((len(rows), length), PAD, np.int64)
    segments = np.zeros((len(rows), length), np.int32)
    positions = np.zeros((len(rows), length), np.int64)
    targets = np.full((len(rows), length), NO_TARGET, np.int64)
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            end = at + len(document)
            ids[row, at:end] = document
            segments[row, at:end] = number + 1
            positions[row, at:end] = np.arange(len(document))
            targets[row, at : end - 1] = document[1:]
            at = end
    return Batch(ids, segments, positions, targets)


def pack_pairs(sources: Documents, targets: Documents, length: int) -> Batch:
    """Pairs, the decoder's side shifted right as the data stage does it."""
    read = pack([[[PAD, *t[:-1]] for t in row] for row in targets], length)
    said = pack(targets, length)
    wanted = np.where(said.segment_ids > 0, said.input_ids, NO_TARGET)
    source = pack(sources, length)
    source = Batch(
        source.input_ids,
        source.segment_ids,
        source.position_ids,
        np.full_like(source.targets, NO_TARGET),
    )
    return Batch(read.input_ids, read.segment_ids, read.position_ids, wanted, source=source)


def tiny(kind: str, **more: Any) -> Any:
    """A model of two layers in evaluation mode, the same at every call."""
    torch.manual_seed(0)
    ids = {"pad": PAD, "eos": 1}
    if kind == "llama":
        return model_of_shape(DecoderShape(32, 64, 2, 2, 1, 64), VOCAB, ids).eval()
    if kind == "t5":
        model = model_of_shape(EncoderDecoderShape(32, 48, 2, 2, 2, 16), VOCAB, ids).eval()
        with torch.no_grad():  # positions weigh next to nothing in a new T5
            for name, parameter in model.named_parameters():
                if "relative_attention_bias" in name:
                    parameter.mul_(10)
        return model
    if kind == "bart":
        config = BartConfig(
            vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, dropout=0.0,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
            decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=1,
            bos_token_id=0, decoder_start_token_id=PAD, forced_eos_token_id=None, init_std=0.2,
        )  # fmt: skip
        return BartForConditionalGeneration(config).eval()
    model = model_of_shape(EncoderShape(32, 64, 2, 2, 64), VOCAB, ids, **more).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
