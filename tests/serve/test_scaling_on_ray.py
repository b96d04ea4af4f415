"""Replicas come and go: with the load, of each model by itself, and with a new configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from raylm.config.engine import EngineConfig
from raylm.config.serve import ReplicaRange, ServeConfig
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.catalog import ServedModel
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import write_llama
from tests.serve.deployed import KEY, get, replicas, until, write_keys
from tests.serve.streams import Stream, run_streams

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
BOUNDS = ReplicaRange(
    min=0, max=2, target_ongoing_requests=2, look_back_s=2, upscale_delay_s=0,
    downscale_delay_s=3, to_zero_delay_s=6,
)  # fmt: skip
REQUEST: dict[str, Any] = {
    "model": "first",
    "max_tokens": 200,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    root = tmp_path_factory.mktemp("models")
    write_keys(root)
    folders = [write_llama(root / n, hidden=512, layers=8, context=512) for n in ("first", "other")]
    return [served_folder(folder) for folder in folders]


def put(
    store: Store, models: Sequence[ServedModel], config: ServeConfig, engine: EngineConfig
) -> Endpoint:
    keys_in = models[0].path.parent
    return deploy(models, config, engine, cache_root=store.root / "engine", base_dir=keys_in)


def counts() -> list[int]:
    return [len(replicas(f"engine-{name}")) for name in ("first", "other")]


def test_from_none_to_many_and_back_to_none(store: Store, models: list[ServedModel]) -> None:
    config = ServeConfig(port=0, replicas=BOUNDS, api_keys="keys", drain_s=5)
    endpoint = put(store, models, config, EngineConfig())
    until(lambda: counts() == [0, 0], 60)
    assert get(endpoint, "/readyz")[0] == 200
    with openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["first", "other"]
        # The first request waits for a replica; the other model's stay away.
        answer = client.completions.create(model="first", prompt="the fox", max_tokens=3)
        assert answer.usage is not None and answer.usage.completion_tokens == 3
    assert counts()[1] == 0
    most = [0, 0]

    async def burst() -> None:
        """Twelve streams at a time, until there are two replicas; then no more."""
        async with asyncio.timeout(120):
            while most[0] < BOUNDS.max:
                streams = await run_streams(endpoint.url, KEY, ["the fox"] * 12, REQUEST)
                assert {stream.error for stream in streams} == {None}
                most[:] = [max(pair) for pair in zip(most, counts(), strict=True)]

    asyncio.run(burst())
    assert most == [BOUNDS.max, 0]
    until(lambda: counts() == [0, 0], 90)
    undeploy(drain_s=0)


def test_a_single_replica_is_replaced_without_a_failure(
    store: Store, models: list[ServedModel]
) -> None:
    config = ServeConfig(port=0, replicas=1, api_keys="keys")
    endpoint = put(store, models[:1], config, EngineConfig(max_batch_size=64))
    (before,) = replicas("engine-first")
    found: list[Stream] = []

    async def load() -> None:
        replacing = asyncio.create_task(
            asyncio.to_thread(put, store, models[:1], config, EngineConfig(max_batch_size=32))
        )
        while not replacing.done():
            found.extend(await run_streams(endpoint.url, KEY, ["the fox"] * 4, REQUEST))
        await replacing

    asyncio.run(load())
    (after,) = replicas("engine-first")
    assert after.pid != before.pid
    assert len(found) >= 8
    assert {(s.error, s.finish_reason, s.num_tokens) for s in found} == {(None, "length", 200)}
    undeploy(drain_s=0)
