"""Models of every architecture: counted, written once, and loaded by transformers as they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from raylm.config.model import ModelConfig
from raylm.errors import ModelError
from raylm.model.build import build_model, load_model, model_of_shape, save_model
from raylm.model.describe import describe_folder, part_of, shape_of
from raylm.model.presets import PRESETS, architecture
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape, Shape

IDS = {"bos": 0, "eos": 1, "pad": 2}
CASES: dict[str, tuple[Shape, str, str, list[str] | None]] = {
    "llama": (DecoderShape(32, 64, 2, 4, 2, 64), "causal", "AutoModelForCausalLM", None),
    "llama-untied": (
        DecoderShape(32, 64, 2, 4, 2, 64, False), "causal", "AutoModelForCausalLM", None,
    ),
    "t5": (EncoderDecoderShape(32, 48, 2, 3, 2, 8), "seq2seq", "AutoModelForSeq2SeqLM", None),
    "t5-untied": (
        EncoderDecoderShape(32, 48, 2, 1, 2, 8, False), "seq2seq", "AutoModelForSeq2SeqLM", None,
    ),
    "t5-plain": (
        EncoderDecoderShape(32, 48, 1, 1, 2, 8, gated=False), "seq2seq", "AutoModelForSeq2SeqLM",
        None,
    ),
    "bert": (EncoderShape(32, 64, 2, 4, 64), "masked", "AutoModelForMaskedLM", None),
    "bert-classes": (
        EncoderShape(32, 64, 2, 4, 64, 3), "classes", "AutoModelForSequenceClassification",
        ["no", "perhaps", "yes"],
    ),
}  # fmt: skip


def built(name: str) -> Any:
    shape, head, _, labels = CASES[name]
    torch.manual_seed(0)
    return model_of_shape(shape, 50, IDS, head=head, labels=labels).eval()  # type: ignore[arg-type]


def run(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 3, 7]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokens = [{"id": i, "content": f"<{n}>", "special": True} for n, i in IDS.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    roles = {f"{name}_token": f"<{name}>" for name in IDS}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_counts_by_part_are_those_of_the_real_module(name: str) -> None:
    shape = CASES[name][0]
    found: Counter[str] = Counter()
    for key, parameter in built(name).named_parameters():
        found[part_of(key, architecture(shape))] += parameter.numel()
    expected = {part: count for part, count in shape.parameters(50).items() if count}
    assert dict(found) == expected
    assert shape.num_parameters(50) == sum(p.numel() for p in built(name).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_as_the_module_that_it_is(name: str) -> None:
    with torch.device("meta"):
        model = model_of_shape(PRESETS[name], 8192, IDS)
    assert PRESETS[name].num_parameters(8192) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_written_model_is_loaded_by_transformers(
    name: str, tmp_path: Path, tokenizer: Path
) -> None:
    shape, _, auto, labels = CASES[name]
    model = built(name)
    model.config.architectures = [type(model).__name__]
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(model.config, model.state_dict(), tokenizer, folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert stored == shape.num_parameters(50)
    loaded = getattr(transformers, auto).from_pretrained(folder).eval()
    assert type(loaded) is type(model)
    written_state = model.state_dict()
    assert loaded.state_dict().keys() == written_state.keys()
    assert all(torch.equal(t, written_state[key]) for key, t in loaded.state_dict().items())
    torch.testing.assert_close(run(loaded), run(model), rtol=1e-6, atol=1e-7)
    assert sum(p.numel() for p in loaded.parameters()) == shape.num_parameters(50)
    written = folder / "generation_config.json"
    assert written.exists() == (name not in ("bert", "bert-classes"))
    if name.startswith("t5"):
        assert json.loads(written.read_text())["decoder_start_token_id"] == 2
    if labels:
        assert loaded.config.id2label == dict(enumerate(labels))
    assert shape_of(json.loads((folder / "config.json").read_text())) == shape
    assert describe_folder(folder, 64).num_parameters == stored


def test_a_new_head_on_a_folder_of_another_kind(tmp_path: Path, tokenizer: Path) -> None:
    model = built("bert")
    model.config.architectures = ["BertForMaskedLM"]
    save_model(model.config, model.state_dict(), tokenizer, tmp_path)
    config = ModelConfig(path=str(tmp_path))
    found = build_model(
        config, seq_len=64, vocab_size=50, special_ids=IDS, head="classes", labels=["a", "b", "c"]
    )
    assert found.config.architectures == ["BertForSequenceClassification"]
    assert found.classifier.out_features == 3
    assert torch.equal(
        found.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight
    )
    with pytest.raises(ModelError, match="type 'bert', which has no head for 'seq2seq'"):
        load_model(tmp_path, "seq2seq")


@pytest.mark.parametrize(
    ("seq_len", "vocab_size", "code"), [(64, 51, "vocab-mismatch"), (65, 50, "context-too-short")]
)
def test_a_folder_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, tokenizer: Path, seq_len: int, vocab_size: int, code: str
) -> None:
    model = built("bert")
    model.config.architectures = ["BertForMaskedLM"]
    save_model(model.config, model.state_dict(), tokenizer, tmp_path)
    with pytest.raises(ModelError) as caught:
        build_model(
            ModelConfig(path=str(tmp_path)), seq_len=seq_len, vocab_size=vocab_size,
            special_ids=IDS, head="masked",
        )  # fmt: skip
    assert caught.value.code == code


def test_a_head_that_an_architecture_does_not_have() -> None:
    with pytest.raises(ModelError) as caught:
        model_of_shape(PRESETS["llama-1m"], 50, IDS, head="masked")
    assert caught.value.code == "model-head"
