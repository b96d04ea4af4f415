"""Logprobs of prompts over HTTP, from the real engine, and transformers' own beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.serve.prepare import prepare, served_folder
from tests.serve.conftest import make_tokenizer, write_llama
from tests.serve.test_endpoints import URL

CONFIG = EngineConfig(kind="openvino", precision="f32", kv_cache="f32", kv_cache_bytes=2**22)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("scored") / "tiny")


@pytest.fixture(scope="module")
def engine(folder, tmp_path_factory):
    cache_root = tmp_path_factory.mktemp("cache")
    model = served_folder(folder)
    prepare([model], CONFIG, cache_root=cache_root)
    engine = load(model.path, CONFIG, cache_root=cache_root, digest=model.digest)
    yield engine
    engine.close()


@pytest.fixture
def client(serve_here, folder, engine):
    return serve_here(files=folder, engine_of=lambda tokenizer: engine).client


def reference(folder, ids):
    """Logprobs of all tokens after each of a text, shape (len(ids), vocab_size)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_they_are_those_of_transformers_as_evaluations_read_them(client, folder, max_tokens):
    """The request and the slices of lm-eval's `local-completions`."""
    ids = [1, *make_tokenizer().encode("the quick brown fox jumps over").ids]
    num_context = 4
    asked = {
        "model": "tiny",
        "prompt": ids,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    (choice,) = client.post(URL, json=asked).json()["choices"]
    found = choice["logprobs"]
    assert len(found["token_logprobs"]) == len(ids) + max_tokens
    known = reference(folder, ids)
    own = [known[i - 1][token] for i, token in enumerate(ids)][num_context:]
    end = len(ids)
    np.testing.assert_allclose(found["token_logprobs"][num_context:end], own, atol=2e-4)
    best = [max(top.values()) for top in found["top_logprobs"][num_context:end]]
    np.testing.assert_allclose(best, known[num_context - 1 : end - 1].max(-1), atol=2e-4)


def test_vllms_way_tells_the_same(client, folder):
    ids = [1, 20, 30, 40]
    asked = {"model": "tiny", "prompt": ids, "max_tokens": 0, "prompt_logprobs": 2}
    (choice,) = client.post(URL, json=asked).json()["choices"]
    known = reference(folder, ids)
    assert choice["prompt_logprobs"][0] is None
    for position, entry in enumerate(choice["prompt_logprobs"][1:], 1):
        row = known[position - 1]
        best = [int(token) for token in np.argsort(-row)[:2]]
        assert set(entry) == {str(token) for token in {*best, ids[position]}}
        for token, told in entry.items():
            assert told["logprob"] == pytest.approx(row[int(token)], abs=2e-4)
            rank = best.index(int(token)) + 1 if int(token) in best else None
            assert told["rank"] == rank
