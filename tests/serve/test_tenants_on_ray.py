"""Keys, limits and kept answers of a deployed endpoint with two gateways."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.config.engine import EngineConfig
from raylm.config.serve import CacheConfig, ServeConfig
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.keys import FILE, Grant, create, now_utc, revoke
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.conftest import write_llama
from tests.serve.deployed import get, replicas, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclasses.dataclass
class Keyed:
    """An endpoint and its key store."""

    endpoint: Endpoint
    path: Path
    admin: str

    def create(self, name: str, **limits: Any) -> str:
        return create(self.path, Grant(name, **limits), now_utc())[0]

    def post(self, key: str, **changes: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Through a connection of its own: the proxy spreads those over the gateways."""
        body = {"model": "tiny", "prompt": "the fox", "max_tokens": 3, "temperature": 0} | changes
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, answer

    def until_known(self, key: str, known: bool) -> None:
        """Until every gateway has looked at the file: many answers alike, one after the other."""
        wanted = 200 if known else 401
        until(
            lambda: all(get(self.endpoint, "/v1/models", key)[0] == wanted for _ in range(12)), 20
        )


@pytest.fixture(scope="module")
def keyed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    root = tmp_path_factory.mktemp("tenants")
    model = served_folder(write_llama(root / "tiny", hidden=64, layers=2, context=512))
    path = root / FILE
    admin, _ = create(path, Grant("admin", ("infer", "metrics")), now_utc())
    endpoint = deploy(
        [model],
        ServeConfig(port=0, replicas=1, gateways=2, drain_s=5, cache=CacheConfig()),
        EngineConfig(),
        cache_root=store.root / "engine",
        store_keys=path,
    )
    yield Keyed(endpoint, path, admin)
    undeploy(drain_s=0)


def test_a_new_key_works_and_a_revoked_one_is_refused_without_a_restart(keyed: Keyed) -> None:
    before = sorted(process.pid for process in replicas("gateway"))
    key = keyed.create("guest")
    keyed.until_known(key, True)
    assert keyed.post(key)[0] == 200
    revoke(keyed.path, "guest", now_utc())
    keyed.until_known(key, False)
    assert keyed.post(key)[0] == 401
    assert sorted(process.pid for process in replicas("gateway")) == before


def test_limits_are_counted_once_for_both_gateways(keyed: Keyed) -> None:
    key = keyed.create("limited", requests_per_minute=10)
    keyed.until_known(key, True)
    begun_s = time.monotonic()
    answers = [keyed.post(key) for _ in range(24)]
    refilled = int((time.monotonic() - begun_s) / 6) + 1
    accepted = [headers for status, headers, _ in answers if status == 200]
    assert 10 <= len(accepted) <= 10 + refilled
    assert [int(h["x-ratelimit-remaining-requests"]) for h in accepted[:10]] == [*range(9, -1, -1)]
    status, headers, answer = answers[-1]
    assert status == 429 and answer["error"]["code"] == "requests_limit_reached"
    assert int(headers["retry-after"]) >= 1
    # Both gateways took part, or this would show nothing.
    text = get(keyed.endpoint, "/metrics", keyed.admin)[1]
    assert len(set(re.findall(r'raylm_tenant_\w+\{gateway="(\w+)",tenant="limited"', text))) == 2


def test_gateways_share_kept_answers_and_tenants_do_not(keyed: Keyed) -> None:
    one, two = keyed.create("one"), keyed.create("two")
    for key in (one, two):
        keyed.until_known(key, True)
    first = keyed.post(one, prompt="only once")
    again = [keyed.post(one, prompt="only once") for _ in range(6)]
    assert first[1]["x-raylm-cache"] == "miss"
    assert {headers["x-raylm-cache"] for _, headers, _ in again} == {"hit"}
    assert {a["choices"][0]["text"] for _, _, a in again} == {first[2]["choices"][0]["text"]}
    assert keyed.post(two, prompt="only once")[1]["x-raylm-cache"] == "miss"


def test_answers_go_on_while_the_ledger_and_the_cache_are_dead(keyed: Keyed) -> None:
    key = keyed.create("going-on", requests_per_minute=1000)
    keyed.until_known(key, True)
    for name in ("ledger", "results"):
        (process,) = replicas(name)
        process.kill()
    statuses = [keyed.post(key, prompt=f"after {i}")[0] for i in range(12)]
    assert statuses == [200] * 12
    until(lambda: all(len(replicas(name)) == 1 for name in ("ledger", "results")), 60)
    until(lambda: keyed.post(key, prompt="back")[1]["x-raylm-cache"] == "hit", 30)
