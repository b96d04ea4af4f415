"""The formulas against saved-tensor hooks on a real model."""

from itertools import product

import numpy as np
import pytest
import torch

from raylm.data.shards import Batch
from raylm.model import document_attention
from raylm.model.build import llama_config
from raylm.model.document_attention import use_document_attention
from raylm.model.fused_norm import use_fused_norm
from raylm.model.shapes import DecoderShape
from raylm.train.objectives.causal import next_token_loss
from raylm.train.plan.decoder import (
    kept_by_checkpointed_layer,
    kept_by_layer,
    kept_outside_layers,
)
from tests.train.plan.saved import saved_bytes

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


def kept_bytes(
    num_layers: int, masked: bool, dtype: torch.dtype, checkpointed: bool, own: bool = False
) -> int:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shape(num_layers), VOCAB, {})).to(dtype).train()
    if own:
        use_document_attention(model)
        use_fused_norm(model)
    if checkpointed:
        model.gradient_checkpointing_enable()
    return saved_bytes(model, lambda: next_token_loss(model, batch(masked), mask_documents=masked))


@pytest.mark.parametrize(("masked", "dtype"), list(product((False, True), WIDTHS)))
def test_a_layer_keeps_what_the_formula_says(masked: bool, dtype: torch.dtype) -> None:
    counted = kept_bytes(3, masked, dtype, False) - kept_bytes(2, masked, dtype, False)
    said = kept_by_layer(shape(1), TOKENS, SEQ_LEN, width=WIDTHS[dtype], masked=masked)
    assert said == counted


@pytest.mark.parametrize(("masked", "dtype"), list(product((False, True), WIDTHS)))
def test_a_layer_of_raylms_own_parts_keeps_what_the_formula_says(
    masked: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "_SHORT", 1)
    width = WIDTHS[dtype]
    counted = [kept_bytes(layers, masked, dtype, False, own=True) for layers in (1, 2, 3)]
    layer = kept_by_layer(shape(1), TOKENS, SEQ_LEN, width=width, masked=masked, own=True)
    assert counted[2] - counted[1] == layer
    loss = (TOKENS + VOCAB) * 64 * width + 2 * 8 * TOKENS
    outside = kept_outside_layers(shape(1), TOKENS, SEQ_LEN, width=width, masked=masked, own=True)
    assert counted[0] - layer == outside + loss


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
