"""The formulas against saved-tensor hooks on a real model."""

from itertools import product

import numpy as np
import pytest
import torch

from raylm.config.train import TrainConfig
from raylm.data.shards import NO_TARGET
from raylm.model.build import model_of_shape
from raylm.model.shapes import EncoderShape
from raylm.train.objectives.classify import Classify
from raylm.train.objectives.mlm import Mlm
from raylm.train.optimizer import hidden_matrices
from raylm.train.plan.batch import Way
from raylm.train.plan.encoder import (
    Encoder,
    kept_by_layer,
    kept_by_masked_head,
    kept_outside_layers,
    num_hidden_tokens,
)
from tests.train.plan.saved import rows, saved_bytes

ROWS, SEQ_LEN, VOCAB, EVERY = 2, 32, 300, 8
TOKENS = ROWS * SEQ_LEN
DTYPES = {4: torch.float32, 2: torch.bfloat16}
WAYS = [
    Way(width, is_masked=masked, has_dropout=dropout)
    for width, masked, dropout in product(DTYPES, (True, False), (False, True))
]


def shape(num_layers: int) -> EncoderShape:
    return EncoderShape(64, 160, num_layers, 4, SEQ_LEN)


def kept_bytes(num_layers: int, way: Way) -> int:
    torch.manual_seed(0)
    model = model_of_shape(shape(num_layers), VOCAB, {}).to(DTYPES[way.width]).train()
    if way.has_dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
    if way.is_checkpointed:
        model.gradient_checkpointing_enable()
    batch = rows(ROWS, SEQ_LEN, VOCAB, every=EVERY)
    return saved_bytes(
        model,
        lambda: Mlm().loss(model, batch, mask_documents=way.is_masked, whole_head=True),
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_layer_keeps_what_the_formula_says(way: Way) -> None:
    said = kept_by_layer(shape(1), ROWS, SEQ_LEN, way)
    assert said.total_bytes == kept_bytes(3, way) - kept_bytes(2, way)
    weights = 4 * shape(1).num_heads * TOKENS * SEQ_LEN
    assert said.scores == (3 * weights if way.has_dropout else 0)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_kept_outside_layers(way: Way) -> None:
    head = kept_by_masked_head(64, VOCAB, TOKENS // EVERY, way)
    layer = kept_by_layer(shape(1), ROWS, SEQ_LEN, way).total_bytes
    said = kept_outside_layers(shape(1), ROWS, SEQ_LEN, way)
    assert said == kept_bytes(1, way) - layer - head


@pytest.mark.parametrize("width", DTYPES)
def test_a_checkpointed_layer_keeps_its_input(width: int) -> None:
    way = Way(width, is_checkpointed=True)
    layer = TOKENS * 64 * width
    assert kept_bytes(3, way) - kept_bytes(2, way) == layer
    head = kept_by_masked_head(64, VOCAB, TOKENS // EVERY, way)
    said = kept_outside_layers(shape(1), ROWS, SEQ_LEN, way)
    assert said == kept_bytes(1, way) - layer - head


def test_a_classifier_keeps_as_much_in_its_layers_and_almost_nothing_in_its_head() -> None:
    classes = EncoderShape(64, 160, 2, 4, SEQ_LEN, num_labels=3)
    model = model_of_shape(classes, VOCAB, {}, head="classes", labels=("a", "b", "c")).train()
    batch = rows(ROWS, SEQ_LEN, VOCAB)
    labels = np.array([[0, 1], [2, NO_TARGET]])
    batch = type(batch)(
        batch.input_ids, batch.segment_ids, batch.position_ids, batch.targets, labels=labels
    )
    counted = saved_bytes(
        model, lambda: Classify().loss(model, batch, mask_documents=True, whole_head=True)
    )
    way = Way(4)
    layers = 2 * kept_by_layer(classes, ROWS, SEQ_LEN, way).total_bytes
    said = layers + kept_outside_layers(classes, ROWS, SEQ_LEN, way)
    # Of four texts the first token, before and after the pooler, and a few figures.
    assert 0 < counted - said < 4 * 4 * 4 * 64
    config = TrainConfig(micro_batch=ROWS)
    assert Encoder(classes, VOCAB, SEQ_LEN).batch_memory(config).loss == 0


def test_a_batch_is_its_layers_and_the_rest() -> None:
    encoder = Encoder(shape(5), VOCAB, SEQ_LEN)
    config = TrainConfig(micro_batch=ROWS)
    found = encoder.batch_memory(config)
    kept = kept_bytes(5, Way(4)) - kept_by_masked_head(64, VOCAB, TOKENS // EVERY, Way(4))
    worked_on = TOKENS * (2 * 160 + 3 * 64) * 4
    assert found.activations.total_bytes == kept + worked_on
    assert len(found.layers) == 5
    hidden = num_hidden_tokens(TOKENS)
    assert hidden == 10
    head = kept_by_masked_head(64, VOCAB, hidden, Way(4))
    assert found.loss == head + hidden * VOCAB * 4 + VOCAB * 64 * 4


def test_muon_moves_the_matrices_of_the_layers() -> None:
    encoder = Encoder(shape(2), VOCAB, SEQ_LEN)
    hidden = hidden_matrices(model_of_shape(shape(2), VOCAB, {}))
    assert encoder.num_hidden == sum(p.numel() for p in hidden)
    assert encoder.largest_hidden == max(p.numel() for p in hidden) == 64 * 160
