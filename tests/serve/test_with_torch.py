"""Models with an encoder behind the HTTP interface, and transformers' own results beside it."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
import torch
import transformers
from starlette.testclient import TestClient

from raylm.config.engine import EngineConfig
from raylm.config.serve import LimitsConfig
from raylm.engine.load import load
from raylm.errors import ModelError
from raylm.model.build import model_of_shape, save_model
from raylm.model.shapes import EncoderDecoderShape, EncoderShape
from raylm.serve.backend import LocalBackend
from raylm.serve.catalog import Catalog, Entry
from raylm.serve.keyring import Keyring
from raylm.serve.ledger import Ledger
from raylm.serve.prepare import prepare, served_folder
from raylm.serve.routes import build_app
from tests.serve.conftest import gateway_of, make_tokenizer, write_model_files

CONFIG = EngineConfig(precision="f32", kv_cache_bytes=2**22, max_context_tokens=100)
EOS = 2
LABELS = ("bug", "praise")
ENCODER = EncoderShape(32, 48, 2, 2, 64)
SHAPES = {
    "seq2seq": EncoderDecoderShape(32, 48, 2, 2, 2, 16, tie_embeddings=False),
    "masked": ENCODER,
    "classes": ENCODER,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for head, shape in SHAPES.items():
        torch.manual_seed(1)
        labels = LABELS if head == "classes" else None
        vocab_size = make_tokenizer().get_vocab_size()
        model = model_of_shape(shape, vocab_size, {"eos": EOS}, head=head, labels=labels)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.5 if parameter.dim() > 1 else 1.0)
        tokenizer = write_model_files(tmp_path_factory.mktemp("t"), template=None)
        made[head] = tmp_path_factory.mktemp(head) / head
        made[head].mkdir()
        model.config.architectures = [type(model).__name__]
        save_model(model.config, model.state_dict(), tokenizer, made[head])
    return made


@pytest.fixture(scope="module")
def client(folders, tmp_path_factory):
    cache_root = tmp_path_factory.mktemp("cache")
    models = [served_folder(folder) for folder in folders.values()]
    prepare(models, CONFIG, cache_root=cache_root)
    engines = [load(m.path, CONFIG, cache_root=cache_root, digest=m.digest) for m in models]
    catalog = Catalog(
        Entry.open(model, LocalBackend(engine), max_chars=1000)
        for model, engine in zip(models, engines, strict=True)
    )
    gateway = gateway_of(catalog, limits=LimitsConfig(), ledger=Ledger())
    with TestClient(build_app(gateway, Keyring([]))) as http:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http)
    for engine in engines:
        engine.close()


def tokens(text):
    """As the data stage writes texts for a model with an encoder: with end-of-text."""
    return [*make_tokenizer().encode(text).ids, EOS]


def test_completions_of_an_encoder_decoder_equal_transformers(client, folders):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folders["seq2seq"]).eval()
    prompts = ["the quick brown fox", "jumps", "over the lazy dog and the quick brown fox " * 3]
    answer = client.completions.create(
        model="seq2seq", prompt=prompts, max_tokens=12, temperature=0, logprobs=1
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        ids = torch.tensor([tokens(prompt)])
        out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, 1:].tolist()
        assert choice.text == make_tokenizer().decode(out)
        assert len(choice.logprobs.tokens) == len(out)
    assert answer.usage.prompt_tokens == sum(len(tokens(prompt)) for prompt in prompts)
    streamed = client.completions.create(
        model="seq2seq", prompt=prompts[0], max_tokens=12, temperature=0, stream=True
    )
    assert "".join(event.choices[0].text for event in streamed) == answer.choices[0].text


def test_prompt_and_answer_take_no_room_from_each_other(client):
    def ask(num_prompt, num_answer):
        return client.completions.create(
            model="seq2seq",
            prompt=[5] * num_prompt,
            max_tokens=num_answer,
            extra_body={"ignore_eos": True},
        )

    assert ask(100, 100).usage.total_tokens == 200
    with pytest.raises(openai.BadRequestError, match="answers have 100 tokens at most") as error:
        ask(1, 101)
    assert error.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="at most 100 tokens of prompt fit"):
        ask(101, 1)


def test_embeddings_equal_transformers(client, folders):
    model = transformers.AutoModel.from_pretrained(folders["masked"]).eval()
    texts = ["the fox", "the quick brown fox jumps over the lazy dog", "dog"]
    answer = client.embeddings.create(model="masked", input=texts)
    for text, item in zip(texts, answer.data, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([tokens(text)])).last_hidden_state[0].mean(0).numpy()
        assert np.abs(np.array(item.embedding) - mean / np.linalg.norm(mean)).max() < 1e-5


def test_classes_equal_transformers(client, folders):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders["classes"])
    texts = ["the fox", "the quick brown fox jumps over the lazy dog", "dog"]
    answer = client.post("/classify", body={"model": "classes", "input": texts}, cast_to=object)
    for text, item in zip(texts, answer["data"], strict=True):
        with torch.no_grad():
            expected = model.eval()(torch.tensor([tokens(text)])).logits.softmax(-1)[0].tolist()
        assert item["probs"] == pytest.approx(expected, abs=1e-5)
        assert item["label"] == LABELS[expected.index(max(expected))]


def test_all_models_tokenize(client):
    for model, limit in (("seq2seq", 100), ("masked", 64), ("classes", 64)):
        answer = client.post(
            "/tokenize", body={"model": model, "prompt": "the fox"}, cast_to=object
        )
        assert answer["tokens"] == tokens("the fox") and answer["max_model_len"] == limit


def test_openvino_is_refused_for_them_before_anything_is_deployed(folders, tmp_path):
    config = CONFIG.model_copy(update={"kind": "openvino"})
    for head, folder in folders.items():
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        with pytest.raises(ModelError, match=architecture) as error:
            prepare([served_folder(folder)], config, cache_root=tmp_path)
        assert error.value.code == "unsupported-architecture", head
        assert error.value.hint is not None and "engine.kind=torch" in error.value.hint
