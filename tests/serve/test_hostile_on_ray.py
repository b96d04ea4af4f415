"""Hostile clients before the whole data plane: HAProxy, Serve's wrapper, gateway, engines.

The figures that these tests print (`-s`) are those of docs/serving.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raylm.config.engine import EngineConfig
from raylm.config.serve import LimitsConfig, ServeConfig
from raylm.deploy.haproxy import HEADERS_S, max_connections, max_files
from raylm.deploy.ports import LOOPBACK
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import write_llama
from tests.serve.deployed import (
    figures,
    get,
    num_running,
    ours,
    replicas,
    until,
    write_keys,
)  # fmt: skip
from tests.serve.hostile import Seen, ask, closed_loop, completion, head, hold, open_loop, share

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
BODY_S, STALL_S = 3.0, 3.0
ONGOING, QUEUED = 4, 4
LONG = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def endpoint(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    root = tmp_path_factory.mktemp("hostile")
    write_keys(root)
    folder = write_llama(root / "tiny", hidden=128, layers=4, context=4096)
    config = ServeConfig(
        port=0,
        replicas=1,
        api_keys="keys",
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        limits=LimitsConfig(body_timeout_s=BODY_S, stall_timeout_s=STALL_S),
    )
    yield deploy(
        [served_folder(folder)],
        config,
        EngineConfig(),
        cache_root=store.root / "engine",
        base_dir=root,
    )
    undeploy(drain_s=0)


def in_flight(endpoint: Endpoint) -> float:
    return sum(figures(endpoint, "raylm_requests_in_flight"))


def rss_mib(processes: list[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in processes) / 2**20


def exchange(endpoint: Endpoint, data: bytes) -> bytes:
    with socket.create_connection((LOOPBACK, endpoint.port), timeout=20) as peer:
        peer.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := peer.recv(65536):
                parts.append(part)
    return b"".join(parts)


def test_processes_may_open_as_many_files_as_the_machine_allows(endpoint):
    for process in [*replicas("gateway"), *ours("bin/haproxy")]:
        assert process.rlimit(psutil.RLIMIT_NOFILE)[0] >= max_files()
    (config,) = {
        argument
        for process in ours("bin/haproxy")
        for argument in process.cmdline()
        if argument.endswith(".cfg")
    }
    lines = [line.strip() for line in Path(config).read_text().splitlines()]
    assert f"maxconn {max_connections(max_files())}" in lines


@pytest.mark.parametrize(
    "header",
    [
        b"X-Request-Id", b"X-Request-Timeout-Seconds", b"X-Request-Disconnect-Disabled",
        b"X-Session-Id", b"x_session_id", b"Serve_Multiplexed_Model_Id",
        b"Serve-Multiplexed-Model-Id", b"Traceparent",
    ],
)  # fmt: skip
def test_headers_that_serve_obeys_are_not_the_clients(endpoint, header):
    answer = exchange(
        endpoint,
        head("/v1/models", "Connection: close", method="GET") + header + b": \xff\xfe\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_client_cannot_shorten_or_hide_by_headers_of_serve(endpoint):
    request = completion(max_tokens=200, ignore_eos=True)
    request = request.replace(b"Host: x\r\n", b"Host: x\r\nX-Request-Timeout-Seconds: 0.001\r\n")
    assert exchange(endpoint, request).startswith(b"HTTP/1.1 200 ")


def test_two_requests_in_one_are_never_two_answers(endpoint):
    inner = head("/v1/models", method="GET") + b"\r\n"
    outer = head("/healthz", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST")
    answer = exchange(endpoint, outer + b"\r\n0\r\n\r\n" + inner)
    assert answer.count(b"HTTP/1.1 ") == 1 and b"tiny" not in answer


def test_body_that_never_ends_is_answered_before_it_is_read(endpoint):
    gateway = replicas("gateway")
    before = rss_mib(gateway)
    begun = time.monotonic()
    start = head(
        "/v1/completions", "Content-Type: application/json", f"Content-Length: {200 * 2**20}"
    )
    sent, answer = 0, b""
    with socket.create_connection((LOOPBACK, endpoint.port), timeout=20) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(start + b"\r\n")
            while sent < 200 * 2**20:
                peer.sendall(b" " * 65536)
                sent += 65536
        with contextlib.suppress(OSError):
            answer = peer.recv(65536)
    print(f"200 MB: {sent / 2**20:.1f} MiB sent, {time.monotonic() - begun:.2f} s, "
          f"gateway {before:.0f} -> {rss_mib(gateway):.0f} MiB")  # fmt: skip
    assert answer.startswith(b"HTTP/1.1 413 ") and sent < 32 * 2**20
    assert rss_mib(gateway) - before < 32


def test_slow_bodies_beyond_the_proxys_buffer_end_at_the_gateways_deadline(endpoint):
    begin = head(
        "/v1/completions", "Content-Type: application/json", "Content-Length: 60000"
    ) + b"\r\n" + b" " * 40_000  # fmt: skip

    async def run() -> tuple[list[tuple[float, int]], Seen]:
        slow = [hold(endpoint.port, begin, b" " * 100, 0.5, 60) for _ in range(60)]
        holding = asyncio.gather(*slow)
        await asyncio.sleep(1)
        # More of them than the gateway takes on: they take no place of others.
        seen = await closed_loop(endpoint.port, completion(max_tokens=4), 2, 5)
        return await holding, seen

    held, seen = asyncio.run(run())
    closed_s = [seconds for seconds, _ in held]
    assert {status for _, status in held} == {408}
    print(f"60 slow bodies: closed after {max(closed_s):.1f} s; others {seen.line()}")
    assert max(closed_s) < BODY_S + 15
    assert seen.statuses == {200: 10}
    assert in_flight(endpoint) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_gives_the_place_back(endpoint, stream):
    data = completion(stream=stream, **LONG)
    peers = []
    try:
        for _ in range(ONGOING + 2):
            peers.append(socket.create_connection((LOOPBACK, endpoint.port), timeout=20))
            peers[-1].sendall(data)
        until(lambda: in_flight(endpoint) == ONGOING + 2, 30)
        until(lambda: num_running(endpoint) == ONGOING, 30)
        assert get(endpoint, "/readyz")[0] == 200, "full, and well"
        for peer in peers[ONGOING:]:  # these wait
            peer.close()
        until(lambda: in_flight(endpoint) == ONGOING, 5)
        assert num_running(endpoint) == ONGOING
    finally:
        for peer in peers:
            peer.close()
    until(lambda: num_running(endpoint) == 0, 5)
    assert in_flight(endpoint) == 0


def test_leaving_in_the_middle_of_the_body_leaves_nothing(endpoint):
    before = sum(figures(endpoint, "raylm_requests_aborted_total"))
    begin = head(
        "/v1/completions", "Content-Type: application/json", "Content-Length: 60000"
    ) + b"\r\n" + b" " * 40_000  # fmt: skip
    with socket.create_connection((LOOPBACK, endpoint.port), timeout=20) as peer:
        peer.sendall(begin)
        time.sleep(0.3)
    until(lambda: sum(figures(endpoint, "raylm_requests_aborted_total")) == before + 1, 10)
    assert in_flight(endpoint) == 0
    assert get(endpoint, "/readyz")[0] == 200


@pytest.mark.faults
def test_slow_headers_are_closed_at_the_deadline_and_others_are_answered(endpoint):
    async def run() -> tuple[list[tuple[float, int]], Seen, Seen]:
        data = completion(max_tokens=4)
        alone = await closed_loop(endpoint.port, data, 2, 40)
        begin = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: "
        holding = asyncio.gather(
            *(hold(endpoint.port, begin, b"a" * 60, 1, 60) for _ in range(500)),
        )
        await asyncio.sleep(1)
        seen = await closed_loop(endpoint.port, data, 2, 40)
        return await holding, alone, seen

    held, alone, seen = asyncio.run(run())
    closed_s = [seconds for seconds, _ in held]
    assert {status for _, status in held} == {408}
    print(f"500 slow headers: closed after {min(closed_s):.1f} to {max(closed_s):.1f} s; "
          f"others alone {alone.line()}, beside them {seen.line()}")  # fmt: skip
    assert min(closed_s) > HEADERS_S - 2 and max(closed_s) < HEADERS_S + 10
    assert seen.statuses == {200: 80}


@pytest.mark.faults
def test_thousands_of_idle_connections_keep_nobody_out(endpoint):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(9_500, max_connections(max_files()) - 200, hard - 500)
    proxies, gateway = ours("bin/haproxy"), replicas("gateway")
    before, before_gateway = rss_mib(proxies), rss_mib(gateway)

    async def run() -> tuple[list[tuple[float, int]], Seen, float, float]:
        begun = time.monotonic()
        holding = asyncio.gather(*(hold(endpoint.port, b"", b"", 1, 90) for _ in range(count)))
        await asyncio.sleep(4)
        seen = await closed_loop(endpoint.port, completion(max_tokens=4), 2, 10)
        held = sum(len(p.net_connections("tcp")) for p in ours("bin/haproxy"))
        full = rss_mib(ours("bin/haproxy"))
        print(f"asked others until {time.monotonic() - begun:.1f} s, {held} connections held")
        return await holding, seen, full, rss_mib(gateway)

    held, seen, full, full_gateway = asyncio.run(run())
    closed_s = [seconds for seconds, _ in held]
    print(f"{count} idle: closed after at most {max(closed_s):.1f} s; others {seen.line()}; "
          f"HAProxy {before:.0f} -> {full:.0f} MiB, gateway {before_gateway:.0f} -> "
          f"{full_gateway:.0f} MiB")  # fmt: skip
    assert seen.statuses == {200: 20}
    assert full - before < 300 and full_gateway - before_gateway < 30


@pytest.mark.faults
def test_many_connections_at_once_are_answered_or_refused(endpoint):
    async def run() -> Seen:
        seen = Seen()
        data = completion(max_tokens=2)
        async with asyncio.TaskGroup() as group:
            for _ in range(2000):
                group.create_task(ask(endpoint.port, data, seen, 120))
        return seen

    seen = asyncio.run(run())
    print(f"2000 at once: {seen.line()}")
    assert set(seen.statuses) <= {200, 503} and seen.statuses[200] > 0
    assert seen.without_retry_after == 0
    assert in_flight(endpoint) == 0


@pytest.mark.faults
def test_three_times_the_capacity_is_refused_before_any_work(endpoint):
    gateway = replicas("gateway")

    async def run() -> tuple[Seen, Seen, Seen, float]:
        data = completion(max_tokens=32, ignore_eos=True)
        await closed_loop(endpoint.port, data, ONGOING, 5)
        begun = time.monotonic()
        full = await closed_loop(endpoint.port, data, ONGOING + QUEUED, 10)
        rate = full.statuses[200] / (time.monotonic() - begun)
        over = await open_loop(endpoint.port, data, 3 * rate, 20)
        after = await closed_loop(endpoint.port, data, ONGOING, 5)
        return full, over, after, rate

    before = rss_mib(gateway)
    full, over, after, rate = asyncio.run(run())
    print(f"capacity {rate:.1f}/s: {full.line()}; at 3x for 20 s: {over.line()}; after: "
          f"{after.line()}; gateway {before:.0f} -> {rss_mib(gateway):.0f} MiB")  # fmt: skip
    assert set(over.statuses) == {200, 503}
    assert over.without_retry_after == 0
    assert share(over.refusals_s, 0.5) < share(over.latencies_s, 0.5)
    assert after.statuses == {200: ONGOING * 5}
    assert rss_mib(gateway) - before < 50


@pytest.mark.faults
def test_reader_of_nothing_is_cut_off_and_holds_little(endpoint):
    """It asks for some 50 MB, and has the smallest window that the kernel gives."""
    gateway, engines = replicas("gateway"), replicas("engine-tiny")
    before, before_engines = rss_mib(gateway), rss_mib(engines)
    wanted = {"stream": True, "logprobs": 20, "ignore_eos": True, "n": ONGOING}
    sample = exchange(endpoint, completion(max_tokens=20, **wanted))
    bytes_per_token = len(sample) / (20 * ONGOING)
    aborted = sum(figures(endpoint, "raylm_requests_aborted_total"))
    tokens = sum(figures(endpoint, "raylm_generated_tokens_total"))
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(20)
        peer.connect((LOOPBACK, endpoint.port))
        peer.sendall(completion(max_tokens=4000, **wanted))
        until(lambda: num_running(endpoint) == ONGOING, 20)
        begun = time.monotonic()
        until(lambda: in_flight(endpoint) == 0, 120)
        took_s = time.monotonic() - begun
        until(lambda: num_running(endpoint) == 0, 5)
        tokens = sum(figures(endpoint, "raylm_generated_tokens_total")) - tokens
        print(f"reader of nothing: {tokens * bytes_per_token / 2**20:.1f} of "
              f"{4000 * ONGOING * bytes_per_token / 2**20:.1f} MiB sent, place back after "
              f"{took_s:.1f} s, gateway {before:.0f} -> {rss_mib(gateway):.0f} MiB, engine "
              f"{before_engines:.0f} -> {rss_mib(engines):.0f} MiB")  # fmt: skip
    assert sum(figures(endpoint, "raylm_requests_aborted_total")) == aborted + 1
    assert tokens < 4000 * ONGOING
    assert rss_mib(gateway) - before < 64
