"""The whole data plane: HAProxy, gateway, engine replicas with OpenVINO, the official client.

One deployment serves all tests of this module; the tests that kill come last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import openai
import psutil
import pytest
from ray import serve

from raylm.config.engine import EngineConfig
from raylm.config.serve import LimitsConfig, ServeConfig
from raylm.engine.protocol import Request, Sampling
from raylm.errors import ConfigError, HostError, RequestError
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.build import APP, engine_name
from raylm.serve.catalog import ServedModel
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import write_llama
from tests.serve.deployed import (
    KEY,
    figures,
    get,
    num_running,
    ours,
    replicas,
    until,
    wait_for_replicas,
    write_keys,
)

pytestmark = pytest.mark.ray
LONG = {"max_tokens": 3000, "temperature": 0, "extra_body": {"ignore_eos": True}}
CONFIG = ServeConfig(
    port=0,
    replicas=2,
    gateways=2,
    api_keys="keys",
    drain_s=60,
    limits=LimitsConfig(max_body_bytes=64 * 1024),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = write_llama(tmp_path_factory.mktemp("m") / "tiny", hidden=128, layers=4, context=4096)
    return served_folder(folder)


@pytest.fixture(scope="module")
def endpoint(
    store: Store, model: ServedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder)
    ticks: list[Any] = []
    yield deploy(
        [model],
        CONFIG,
        EngineConfig(),
        cache_root=store.root / "engine",
        base_dir=folder,
        report=ticks.append,
    )
    undeploy(drain_s=0)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_completion_and_chat_with_the_official_client(client, model):
    one = client.completions.create(model="tiny", prompt="the fox", max_tokens=8, temperature=0)
    again = client.completions.create(model="tiny", prompt="the fox", max_tokens=8, temperature=0)
    assert one.choices[0].text == again.choices[0].text
    assert one.usage is not None and one.usage.completion_tokens == 8
    assert one.system_fingerprint == model.digest[:12]
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},  # sampled: its text may end anywhere
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 5 and len(logprobs.content[0].top_logprobs) == 2
    assert next(m.id for m in client.models.list()) == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"


def test_streams_have_the_same_text_and_usage(client):
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the lazy dog"}],
        "max_tokens": 40,
        "seed": 5,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**request)
    stream = client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 40
    assert chunks[-2].choices[0].finish_reason == "length"


def test_serving_imports_neither_torch_nor_transformers(endpoint):
    from ray import serve

    handle: Any = serve.get_deployment_handle("engine-tiny", "raylm")
    for modules in handle.broadcast("imported").results():
        assert not {"torch", "transformers", "datasets", "deepspeed"} & set(modules)


def test_errors_of_the_official_client(client, endpoint):
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="tiny", prompt="x", extra_body={"temprature": 1})
    assert bad.value.param == "temprature" and "temperature" in bad.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nope", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 5000)
    assert long.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=endpoint.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.completions.create(model="tiny", prompt="x")
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="tiny", prompt="x" * 100_000)
    assert large.value.status_code == 413


def test_only_two_paths_are_public(endpoint):
    for path in ("/healthz", "/readyz"):
        assert get(endpoint, path, key=None)[0] == 200
    for path in ("/v1/models", "/metrics", "/docs", "/", "/v1/completions"):
        assert get(endpoint, path, key=None)[0] == 401
    status, _, headers = get(endpoint, "/v1/nothing")
    assert status == 404 and headers["content-type"] == "application/json"


def test_oversized_chunked_body_is_cut_off_while_it_arrives(endpoint):
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as peer:
        peer.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + KEY.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(20_000):
                peer.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
                sent += 1024
        assert sent < 16 * 2**20
        assert b" 413 " in peer.recv(4096)


def test_everything_listens_on_loopback_only(endpoint):
    def look() -> int:
        """How many processes were looked at; all that they listen on must be loopback."""
        num = 0
        for process in [*replicas("gateway"), *replicas("engine-tiny"), *ours("bin/haproxy")]:
            with contextlib.suppress(psutil.NoSuchProcess):
                listening = [
                    c.laddr for c in process.net_connections("tcp") if c.status == "LISTEN"
                ]
                for address in listening:
                    assert ip_address(address.ip.removeprefix("::ffff:")).is_loopback, address
                num += 1
        return num

    # HAProxy hands over to a new process when replicas come or go: one may end meanwhile.
    until(lambda: look() >= 5, 30)


def test_a_replica_goes_on_with_answers_of_its_own_weights_alone(endpoint, model):
    handle = serve.get_deployment_handle(engine_name(model), APP).options(stream=True)
    sampling = Sampling(max_tokens=4, temperature=0, ignore_eos=True)

    def ask(digest: str) -> list[int]:
        request = Request(f"by-{digest}", (5, 6), sampling, emitted_ids=(7,), digest=digest)
        messages = handle.generate.remote(request)
        return [token for packed in messages for chunk in packed for token in chunk[1]]

    assert len(ask(model.digest)) == 3 and ask("") == ask(model.digest)
    with pytest.raises(RequestError, match="replaced by other weights") as caught:
        ask("ab" * 32)
    assert caught.value.code == "model-replaced"


def cancelled(endpoint: Endpoint) -> float:
    return sum(figures(endpoint, "raylm_engine_requests_cancelled_total"))


def test_closed_stream_frees_the_engine(endpoint, client):
    before = cancelled(endpoint)
    stream = client.completions.create(model="tiny", prompt="the fox", stream=True, **LONG)
    for _, _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    until(lambda: cancelled(endpoint) == before + 1)
    assert num_running(endpoint) == 0
    assert sum(figures(endpoint, "raylm_requests_aborted_total")) >= 1


def test_abandoned_whole_answer_frees_the_engine(endpoint):
    before = cancelled(endpoint)

    async def abandon() -> None:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY) as other:
            call = other.completions.create(model="tiny", prompt="the fox", **LONG)
            task = asyncio.create_task(call)
            await asyncio.to_thread(until, lambda: num_running(endpoint) == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(abandon())
    try:
        until(lambda: cancelled(endpoint) == before + 1, 3)
    finally:
        until(lambda: num_running(endpoint) == 0, 60)


def test_one_scrape_has_all_gateways_and_replicas(endpoint, client):
    for _ in range(20):
        client.completions.create(model="tiny", prompt="x", max_tokens=1)
    for _ in range(6):
        assert len(figures(endpoint, "raylm_requests_in_flight")) == 2
        assert figures(endpoint, "raylm_engine_up") == [1.0, 1.0]
    counts = figures(endpoint, "raylm_requests_total")
    assert sum(counts) >= 20


def test_second_deployment_elsewhere_is_refused(endpoint, store, model):
    with pytest.raises(HostError) as caught:
        deploy(
            [model],
            ServeConfig(port=endpoint.port + 1),
            EngineConfig(),
            cache_root=store.root / "engine",
        )
    assert caught.value.code == "serve-elsewhere"


def test_what_cannot_be_placed_fails_at_once(endpoint, store, model):
    config = ServeConfig(port=0, replicas=40, gateways=2)
    with pytest.raises(HostError, match=r"needs 20\.5 CPUs"):
        deploy([model], config, EngineConfig(), cache_root=store.root / "engine")


def ends_of_streams(client: openai.OpenAI, victim: int, count: int = 8) -> list[str]:
    """How `count` streams end when a process is killed as soon as all have begun."""
    begun = [threading.Event() for _ in range(count)]
    ends: list[str] = []

    def stream(begun: threading.Event) -> None:
        try:
            finish = None
            for chunk in client.completions.create(model="tiny", prompt="a", stream=True, **LONG):
                begun.set()
                finish = chunk.choices[0].finish_reason if chunk.choices else finish
            ends.append("whole" if finish == "length" else f"ended {finish}")
        except openai.APIError as error:
            ends.append(f"error {error.code}")
        except Exception as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=stream, args=(event,)) for event in begun]
    for thread in threads:
        thread.start()
    for event in begun:
        assert event.wait(60)
    assert ends == [], "every stream is still running"
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    assert len(ends) == count
    return ends


@pytest.mark.faults
def test_killed_gateway_cuts_streams_so_that_the_client_notices(endpoint, client):
    # A connection of its own for each: HAProxy spreads them over the gateways.
    ends = ends_of_streams(client, replicas("gateway")[0].pid)
    assert 0 < ends.count("whole") < len(ends)
    assert not [end for end in ends if end.startswith("ended")], "cut, and taken for complete"
    wait_for_replicas(endpoint, 2)


def test_undeploy_finishes_running_answers_and_refuses_new_ones(endpoint, client):
    found: list[Any] = []
    request = {**LONG, "max_tokens": 1500}
    running = threading.Thread(
        target=lambda: found.append(
            client.completions.create(model="tiny", prompt="the fox", **request)
        )
    )
    running.start()
    until(lambda: num_running(endpoint) >= 1)
    drained: list[bool] = []
    ending = threading.Thread(target=lambda: drained.append(undeploy(drain_s=CONFIG.drain_s)))
    ending.start()
    until(lambda: get(endpoint, "/readyz")[0] == 503)
    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert refused.value.status_code == 503 and refused.value.code == "draining"
    assert refused.value.response.headers["retry-after"] == "5"
    running.join(60)
    ending.join(180)
    assert found[0].usage.completion_tokens == 1500 and drained == [True]
    assert replicas("engine-tiny") == []


def test_replica_that_cannot_start_fails_with_its_own_reason(store, model):
    with pytest.raises(ConfigError) as caught:
        deploy(
            [model],
            ServeConfig(port=0, replicas=1),
            EngineConfig(kind="torch", kv_cache="u8"),
            cache_root=store.root / "engine",
        )
    assert caught.value.message == "the torch engine has no 8-bit key-value cache"
    assert caught.value.code == "unsupported-kv-cache"
