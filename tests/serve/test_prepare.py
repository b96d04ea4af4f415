"""What is made before a deployment; here the draft model that `engine.speculation` names."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from raylm.config.engine import EngineConfig
from raylm.config.load import load_config
from raylm.engine.load import load
from raylm.engine.protocol import Request, Sampling
from raylm.errors import ConfigError
from raylm.serve.prepare import prepare, served_folder
from raylm.serve.resolve import with_draft
from raylm.store import Store
from tests.serve.conftest import write_llama

CONFIG = EngineConfig(kind="openvino", precision="f32", kv_cache_bytes=2**22)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("drafted") / "tiny")


def test_replicas_get_the_converted_draft_of_a_name_in_the_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "models/small")
    (tmp_path / "raylm.yaml").write_text(
        "engine:\n  precision: f32\n  kv_cache_bytes: 4194304\n"
        "  speculation: {kind: draft, model: models/small, num_tokens: 3}\n"
    )
    loaded = load_config(tmp_path / "raylm.yaml")
    model, cache_root = served_folder(folder), tmp_path / "engine"
    config = prepare(
        [model],
        with_draft(loaded.config.engine, Store(tmp_path / "store"), loaded.base_dir),
        cache_root=cache_root,
    )
    # Replicas get plain values, and nothing is left to find or to convert.
    shutil.rmtree(tmp_path / "models")
    engine = load(
        model.path,
        EngineConfig.model_validate(json.loads(config.model_dump_json())),
        cache_root=cache_root,
        digest=model.digest,
    )

    async def answer():
        sampling = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)
        request = Request("a", (5, 6, 7, 8), sampling)
        return [token async for chunk in engine.generate(request) for token in chunk.token_ids]

    try:
        assert len(asyncio.run(answer())) == 40
        stats = engine.stats()
        assert stats.confirmed_tokens_total > 0.9 * stats.guessed_tokens_total > 0
    finally:
        engine.close()


def test_a_draft_of_another_vocabulary_ends_before_the_deployment(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (last, id) = list(tokenizer["model"]["vocab"].items())[-1]
    tokenizer["model"]["vocab"] = {**tokenizer["model"]["vocab"], "another": id}
    del tokenizer["model"]["vocab"][last]
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    speculation = {"kind": "draft", "model": str(other)}
    config = EngineConfig(**{**CONFIG.model_dump(), "speculation": speculation})
    with pytest.raises(ConfigError, match="another vocabulary") as error:
        prepare([served_folder(folder)], config, cache_root=tmp_path / "engine")
    assert error.value.code == "draft-tokenizer"
