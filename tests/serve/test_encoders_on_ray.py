"""Embeddings, classes and an encoder-decoder through HAProxy, gateway and replicas with torch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
import torch

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.engine.encode import EmbedRequest
from raylm.engine.load import load
from raylm.model.build import model_of_shape, save_model
from raylm.model.shapes import EncoderDecoderShape, EncoderShape
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.catalog import ServedModel
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import make_tokenizer, write_model_files

pytestmark = pytest.mark.ray
EOS = 2
ENGINE = EngineConfig(precision="f32", kv_cache_bytes=2**22)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    made = []
    for head, shape, labels in (
        ("classes", EncoderShape(32, 48, 2, 2, 64), ("bug", "praise")),
        ("seq2seq", EncoderDecoderShape(32, 48, 2, 2, 2, 16), None),
    ):
        torch.manual_seed(1)
        vocab_size = make_tokenizer().get_vocab_size()
        model = model_of_shape(shape, vocab_size, {"eos": EOS}, head=head, labels=labels)
        tokenizer = write_model_files(tmp_path_factory.mktemp("t"), template=None)
        folder = tmp_path_factory.mktemp(head) / head
        folder.mkdir()
        model.config.architectures = [type(model).__name__]
        save_model(model.config, model.state_dict(), tokenizer, folder)
        made.append(served_folder(folder))
    return made


@pytest.fixture(scope="module")
def endpoint(store: Store, models: list[ServedModel]) -> Iterator[Endpoint]:
    config = ServeConfig(port=0, replicas=1)
    yield deploy(models, config, ENGINE, cache_root=store.root / "engine")
    undeploy(drain_s=0)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0) as client:
        yield client


def test_embeddings_and_classes_are_those_of_an_engine_here(client, models, tmp_path):
    answer = client.embeddings.create(model="classes", input=["the fox", "jumps"] * 50)
    engine = load(models[0].path, ENGINE, cache_root=tmp_path, digest="d")
    for text, item in zip(("the fox", "jumps"), answer.data, strict=False):
        ids = (*make_tokenizer().encode(text).ids, EOS)
        expected = asyncio.run(engine.embed(EmbedRequest("e", ids))).vector
        assert item.embedding == pytest.approx(expected.tolist(), abs=1e-5)
    engine.close()
    assert len(answer.data) == 100
    classes = client.post(
        "/classify", body={"model": "classes", "input": "the fox"}, cast_to=object
    )
    assert sum(classes["data"][0]["probs"]) == pytest.approx(1.0, abs=1e-6)


def test_an_encoder_decoder_streams_what_it_answers_whole(client):
    asked = {
        "model": "seq2seq",
        "prompt": "the fox",
        "max_tokens": 20,
        "seed": 3,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**asked)
    pieces = [event.choices[0].text for event in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens == 20


def test_what_a_model_cannot_do_is_refused_through_the_whole_way(client):
    with pytest.raises(openai.BadRequestError, match="cannot generate") as error:
        client.completions.create(model="classes", prompt="the fox")
    assert error.value.code == "unsupported_call"
