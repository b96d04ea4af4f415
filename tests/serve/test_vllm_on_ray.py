"""vLLM behind the gateway, in an environment of its own, on a real cluster; CPU build.

    RAYLM_VLLM_PYTHON=/path/to/bin/python python -m pytest -m vllm tests/serve/test_vllm_on_ray.py

The interpreter's environment has vLLM, raylm and this cluster's Ray. The texts are compared with
those of the OpenVINO engine: the same weights in f32, the same sampler.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from raylm.config.engine import EngineConfig, VllmConfig
from raylm.config.serve import ServeConfig
from raylm.engine.load import load
from raylm.engine.protocol import Engine, Request, Sampling
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.catalog import ServedModel
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import make_tokenizer, write_llama
from tests.serve.deployed import KEY, cluster, figures, num_running, until, write_keys

PYTHON = os.environ.get("RAYLM_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(PYTHON is None, reason="RAYLM_VLLM_PYTHON names no interpreter with vLLM"),
]
ENGINE = EngineConfig(
    kind="vllm",
    vllm=VllmConfig(python=PYTHON or "", device="cpu"),
    precision="f32",
    kv_cache_bytes=2**26,
    max_batch_size=8,
)
CONFIG = ServeConfig(
    port=0, replicas=1, gateways=1, cpus_per_replica=1, api_keys="keys", start_timeout_s=1500
)
SAMPLED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 40,
    "temperature": 0.8,
    "top_p": 0.9,
    "seed": 11,
    "frequency_penalty": 0.5,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with cluster(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return served_folder(write_llama(tmp_path_factory.mktemp("m") / "tiny", hidden=128, layers=4))


@pytest.fixture(scope="module")
def endpoint(
    store: Store, model: ServedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder)
    yield deploy([model], CONFIG, ENGINE, cache_root=store.root / "engine", base_dir=folder)
    undeploy(drain_s=0)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def other(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same model in the OpenVINO engine, exact."""
    exact = EngineConfig(kind="openvino", precision="f32", kv_cache="f32")
    engine = load(model.path, exact, cache_root=tmp_path_factory.mktemp("ir"), digest=model.digest)
    yield engine
    engine.close()


def text_of(engine: Engine, prompt: str, sampling: Sampling) -> str:
    async def ask() -> str:
        ids = tuple(make_tokenizer().encode(prompt).ids)
        return "".join([c.text async for c in engine.generate(Request(prompt, ids, sampling))])

    return asyncio.run(ask())


def test_texts_are_those_of_the_other_engine_greedy_and_drawn(client, other):
    greedy = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)
    drawn = Sampling(
        max_tokens=40, temperature=0.8, top_p=0.9, seed=11, frequency_penalty=0.5, ignore_eos=True
    )
    for prompt in ("the fox", "jumps over", "the quick brown fox jumps over the lazy dog"):
        answer = client.completions.create(**{**SAMPLED, "temperature": 0, "frequency_penalty": 0},
                                           prompt=prompt)  # fmt: skip
        assert answer.choices[0].text == text_of(other, prompt, greedy)
        assert answer.usage is not None and answer.usage.completion_tokens == 40
        answer = client.completions.create(**SAMPLED, prompt=prompt)
        assert answer.choices[0].text == text_of(other, prompt, drawn)


def test_streams_stop_strings_and_logprobs(client, other):
    whole = client.completions.create(**SAMPLED, prompt="the fox")
    streamed = client.completions.create(**SAMPLED, prompt="the fox", stream=True)
    assert "".join(e.choices[0].text for e in streamed if e.choices) == whole.choices[0].text
    stop = whole.choices[0].text[12:15]
    cut = client.completions.create(**SAMPLED, prompt="the fox", stop=stop)
    assert cut.choices[0].text == whole.choices[0].text.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    scored = client.completions.create(
        model="tiny", prompt="the fox", max_tokens=3, temperature=0, logprobs=2, echo=True
    )
    sampling = Sampling(max_tokens=3, temperature=0.0, num_logprobs=2, num_prompt_logprobs=2)

    async def ask() -> list[Any]:
        ids = tuple(make_tokenizer().encode("the fox").ids)
        return [chunk async for chunk in other.generate(Request("scored", ids, sampling))]

    chunks = asyncio.run(ask())
    entries = [entry for entry in chunks[0].prompt_logprobs if entry is not None]
    entries += [entry for chunk in chunks for entry in chunk.logprobs]
    found = scored.choices[0].logprobs
    assert found is not None and found.token_logprobs is not None
    assert found.token_logprobs[0] is None and len(found.token_logprobs) == len(entries) + 1
    for value, entry in zip(found.token_logprobs[1:], entries, strict=True):
        assert value == pytest.approx(entry.logprob, abs=1e-3)


def test_a_client_that_leaves_frees_its_place(client, endpoint):
    request = {**SAMPLED, "max_tokens": 400}
    stream = client.completions.create(**request, prompt="the fox", stream=True)
    next(iter(stream))
    assert num_running(endpoint) == 1
    stream.close()
    until(lambda: num_running(endpoint) == 0)
    assert sum(figures(endpoint, "raylm_engine_generated_tokens")) < 2000


def test_what_vllm_cannot_do_here_is_a_400_that_says_so(client):
    with pytest.raises(openai.BadRequestError, match="'vllm' follows no grammar"):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            response_format={"type": "json_object"},
        )
    with pytest.raises(openai.BadRequestError, match="cannot embed"):
        client.embeddings.create(model="tiny", input="the fox")
