"""The formulas against saved-tensor hooks on a real model."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from raylm.data.shards import Batch
from raylm.model.build import llama_config
from raylm.model.shapes import DecoderShape
from raylm.train.objectives.causal import next_token_loss
from raylm.train.plan.activations import (
    kept_by_checkpointed_layer,
    kept_by_layer,
    kept_outside_layers,
)

ROWS, SEQ_LEN, VOCAB = 2, 32, 300
TOKENS = ROWS * SEQ_LEN
WIDTHS = {torch.float32: 4, torch.bfloat16: 2}


def shape(num_layers: int) -> DecoderShape:
    return DecoderShape(64, 160, num_layers, 4, 2, SEQ_LEN)


def batch(masked: bool) -> Batch:
    ids = np.random.default_rng(0).integers(0, VOCAB, (ROWS, SEQ_LEN))
    segments = np.ones((ROWS, SEQ_LEN), np.int32)
    if masked:
        segments[:, SEQ_LEN // 2 :] = 2
    positions = np.tile(np.arange(SEQ_LEN), (ROWS, 1))
    return Batch(ids, segments, positions, np.roll(ids, -1, 1))


def kept_bytes(num_layers: int, masked: bool, dtype: torch.dtype, checkpointed: bool) -> int:
    """Bytes of all storages, but for weights, that a forward pass saves for the backward pass."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shape(num_layers), VOCAB, {})).to(dtype).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        next_token_loss(model, batch(masked), mask_documents=masked)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("masked", "dtype"), list(product((False, True), WIDTHS)))
def test_a_layer_keeps_what_the_formula_says(masked: bool, dtype: torch.dtype) -> None:
    counted = kept_bytes(3, masked, dtype, False) - kept_bytes(2, masked, dtype, False)
    said = kept_by_layer(shape(1), TOKENS, SEQ_LEN, width=WIDTHS[dtype], masked=masked)
    assert said == counted


@pytest.mark.parametrize("dtype", WIDTHS)
def test_a_checkpointed_layer_keeps_its_input(dtype: torch.dtype) -> None:
    counted = kept_bytes(3, True, dtype, True) - kept_bytes(2, True, dtype, True)
    assert kept_by_checkpointed_layer(shape(1), TOKENS, width=WIDTHS[dtype]) == counted


@pytest.mark.parametrize("dtype", WIDTHS)
def test_what_is_kept_outside_layers(dtype: torch.dtype) -> None:
    width = WIDTHS[dtype]
    layer = kept_by_layer(shape(1), TOKENS, SEQ_LEN, width=width, masked=False)
    # The loss keeps the gradients of hidden states and head, and ids of inputs and rows.
    loss = (TOKENS + VOCAB) * 64 * width + 2 * 8 * TOKENS
    said = kept_outside_layers(shape(1), TOKENS, SEQ_LEN, width=width, masked=False)
    assert said == kept_bytes(1, False, dtype, False) - layer - loss
