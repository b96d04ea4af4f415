"""The formulas against saved-tensor hooks on a real model."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import T5ForConditionalGeneration

from raylm.config.train import TrainConfig
from raylm.model.build import model_of_shape, t5_config
from raylm.model.shapes import EncoderDecoderShape
from raylm.train.objectives.seq2seq import Seq2Seq
from raylm.train.optimizer import hidden_matrices
from raylm.train.plan.batch import Kept, Way
from raylm.train.plan.encoder_decoder import (
    EncoderDecoder,
    Rows,
    kept_by_checkpointed_layers,
    kept_by_decoder_layer,
    kept_by_encoder_layer,
    kept_outside_layers,
)
from tests.train.plan.saved import rows, saved_bytes

VOCAB = 300
ROWS = Rows(2, seq_len=32, source_len=48)
DTYPES = {4: torch.float32, 2: torch.bfloat16}
WAYS = [Way(width, has_dropout=dropout) for width, dropout in product(DTYPES, (False, True))]
GATED = EncoderDecoderShape(64, 160, 1, 1, 4, 24)
PLAIN = replace(GATED, gated=False)


def kept_bytes(shape: EncoderDecoderShape, encoder: int, decoder: int, way: Way) -> int:
    torch.manual_seed(0)
    shape = replace(shape, num_layers=encoder, num_decoder_layers=decoder)
    config = t5_config(shape, VOCAB, {"pad": 0, "eos": 1})
    config.dropout_rate = 0.1 if way.has_dropout else 0.0
    model = T5ForConditionalGeneration(config).to(DTYPES[way.width]).train()
    if way.is_checkpointed:
        model.gradient_checkpointing_enable()
    source = rows(ROWS.num_rows, ROWS.source_len, VOCAB)
    batch = replace(rows(ROWS.num_rows, ROWS.seq_len, VOCAB), source=source)
    return saved_bytes(
        model, lambda: Seq2Seq().loss(model, batch, mask_documents=True, whole_head=True)
    )


def loss_bytes(way: Way) -> int:
    """Gradients of hidden states and head, and where the targets are."""
    return (ROWS.targets + VOCAB) * 64 * way.width + 8 * ROWS.targets


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("shape", [GATED, PLAIN], ids=["gated", "plain"])
def test_layers_and_the_rest_keep_what_the_formulas_say(
    shape: EncoderDecoderShape, way: Way
) -> None:
    least = kept_bytes(shape, 1, 1, way)
    encoder = kept_by_encoder_layer(shape, ROWS, way)
    decoder = kept_by_decoder_layer(shape, ROWS, way)
    assert encoder.total_bytes == kept_bytes(shape, 2, 1, way) - least
    assert decoder.total_bytes == kept_bytes(shape, 1, 2, way) - least
    layers = encoder.total_bytes + decoder.total_bytes
    assert kept_outside_layers(shape, ROWS, way) == least - layers - loss_bytes(way)


@pytest.mark.parametrize("width", DTYPES)
def test_checkpointed_layers_keep_their_inputs_and_biases(width: int) -> None:
    way = Way(width, is_checkpointed=True)
    for layers in ((1, 1), (2, 1), (1, 2), (3, 3)):
        shape = replace(GATED, num_layers=layers[0], num_decoder_layers=layers[1])
        said = kept_by_checkpointed_layers(shape, ROWS, way).total_bytes
        said += kept_outside_layers(shape, ROWS, way) + loss_bytes(way)
        assert said == kept_bytes(GATED, *layers, way)


def test_scores_are_counted_apart_from_rows() -> None:
    way = Way(4)
    encoder = kept_by_encoder_layer(GATED, ROWS, way)
    assert encoder.scores == 4 * 4 * ROWS.sources * ROWS.source_len
    decoder = kept_by_decoder_layer(GATED, ROWS, way)
    assert decoder.scores == 4 * 4 * ROWS.targets * (ROWS.seq_len + ROWS.source_len)
    # Of both halves twice as much; so many rows of twice the length keep four times the scores.
    twice = Rows(2, seq_len=64, source_len=96)
    assert kept_by_encoder_layer(GATED, twice, way) == Kept(2 * encoder.rows, 4 * encoder.scores)


def test_a_batch_is_its_layers_and_the_rest() -> None:
    shape = replace(GATED, num_layers=2, num_decoder_layers=3)
    model = EncoderDecoder(shape, VOCAB, ROWS.seq_len, ROWS.source_len)
    found = model.batch_memory(TrainConfig(micro_batch=2))
    kept = kept_bytes(shape, 2, 3, Way(4)) - loss_bytes(Way(4))
    worked_on = ROWS.sources * (3 * 160 + 3 * 64) * 4 + 2 * 4 * 4 * ROWS.sources * 48
    assert found.activations.total_bytes == kept + worked_on
    assert len(found.layers) == 5
    fewer = model.batch_memory(TrainConfig(micro_batch=2, activation_checkpointing=True))
    assert fewer.activations.total_bytes < found.activations.total_bytes / 2
    assert fewer.layers[0] == found.layers[0]


def test_muon_moves_the_matrices_of_the_layers() -> None:
    model = EncoderDecoder(GATED, VOCAB, 32, 48)
    hidden = hidden_matrices(model_of_shape(GATED, VOCAB, {"pad": 0}))
    assert model.num_hidden == sum(p.numel() for p in hidden)
    assert model.largest_hidden == max(p.numel() for p in hidden) == 64 * 160


def test_a_longer_source_costs_its_share() -> None:
    even = EncoderDecoder(GATED, VOCAB, 32, 32)
    assert even.flops_per_token == GATED.flops_per_token(VOCAB, 32)
    longer = EncoderDecoder(GATED, VOCAB, 32, 64).flops_per_token
    # Encoder, and the keys and values that the decoder has of it, a second time; their scores.
    attention, mlp, inner = 4 * 64 * 96, 3 * 64 * 160, 4 * 24
    more = 6 * (attention + mlp + 3 * 64 + attention // 2) + 12 * inner * (2 * 64 - 32 + 32)
    assert longer - even.flops_per_token == more
