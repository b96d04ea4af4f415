import json
from pathlib import Path
from typing import Any

import pytest

from raylm.config.model import ModelConfig
from raylm.model.build import bert_config, llama_config, t5_config
from raylm.model.presets import PRESETS
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape
from raylm.train.plan.encoder import Encoder
from raylm.train.plan.encoder_decoder import EncoderDecoder
from raylm.train.plan.subject import subject_of

ROW = {"seq_len": 128, "vocab_size": 1000}


def folder(path: Path, config: Any, name: str, **changes: Any) -> ModelConfig:
    values = config.to_dict() | {"architectures": [name]} | changes
    (path / "config.json").write_text(json.dumps(values))
    return ModelConfig(path=str(path))


@pytest.mark.parametrize(
    ("preset", "architecture"),
    [("llama-1m", "decoder"), ("t5-1m", "encoder-decoder"), ("bert-1m", "encoder")],
)
def test_presets_of_all_three_architectures_have_a_cost(preset: str, architecture: str) -> None:
    found = subject_of(ModelConfig(preset=preset), **ROW)
    assert found is not None
    assert found.architecture == architecture
    assert found.num_parameters == PRESETS[preset].num_parameters(1000)
    assert found.seq_len == 128


def test_the_source_of_pairs_has_its_own_length() -> None:
    model = ModelConfig(preset="t5-1m")
    one, longer = subject_of(model, **ROW), subject_of(model, **ROW, source_len=512)
    assert one is not None
    assert longer is not None
    assert one == subject_of(model, **ROW, source_len=128)
    assert longer.flops_per_token > 2 * one.flops_per_token


def test_labels_decide_the_head_of_an_encoder() -> None:
    model = ModelConfig(preset="bert-1m")
    found = subject_of(model, **ROW, num_labels=3)
    hidden = subject_of(model, **ROW)
    assert found is not None
    assert hidden is not None
    head = 128 * 128 + 128 + 3 * 129
    assert hidden.num_parameters - found.num_parameters == 1000 + 128 * 128 + 3 * 128 - head


T5, BERT = EncoderDecoderShape(64, 160, 2, 3, 4, 24), EncoderShape(64, 160, 2, 4, 512)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "dropout"),
    [
        ("T5ForConditionalGeneration", "dropout_rate"),
        ("BertForMaskedLM", "hidden_dropout_prob"),
        ("BertForSequenceClassification", "attention_probs_dropout_prob"),
    ],
)
def test_folders_have_their_own_shape_vocabulary_and_dropout(
    name: str, dropout: str, rate: float, tmp_path: Path
) -> None:
    is_t5 = name.startswith("T5")
    config = t5_config(T5, 500, {"pad": 0}) if is_t5 else bert_config(BERT, 500, {})
    found = subject_of(folder(tmp_path, config, name, **{dropout: rate}), **ROW)
    assert isinstance(found, EncoderDecoder | Encoder)
    assert found.num_parameters == (T5 if is_t5 else BERT).num_parameters(500)
    assert found.has_dropout == (rate > 0)


def test_decoders_near_to_llama_count_as_one_and_others_are_unknown(tmp_path: Path) -> None:
    shape = DecoderShape(64, 160, 2, 4, 2, 128, tie_embeddings=False)
    config = llama_config(shape, 500, {})
    near = subject_of(folder(tmp_path, config, "Qwen2ForCausalLM", model_type="qwen2"), **ROW)
    assert near is not None
    assert near.num_parameters == shape.num_parameters(500)
    far = folder(tmp_path, config, "GPT2LMHeadModel", model_type="gpt2")
    assert subject_of(far, **ROW) is None
    bart = folder(tmp_path, config, "BartForConditionalGeneration", model_type="bart")
    assert subject_of(bart, **ROW) is None
