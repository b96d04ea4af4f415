"""What a RayService gives Ray Serve: the chart's own serveConfigV2 on a cluster of this machine.

KubeRay sends it to the dashboard, as is done here. Only what a pod has and this machine has not is
put in its place: the folders, and the port of the endpoint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.deploy.kubernetes import probe
from raylm.deploy.kubernetes.state import causes
from raylm.deploy.record import read_record, store_token
from raylm.serve.app import free_port
from raylm.store import Store
from tests.serve.conftest import write_llama
from tests.serve.deployed import KEY, cluster, replicas, write_keys

pytestmark = pytest.mark.ray
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with cluster(tmp_path_factory.mktemp("store")) as store:
        put(store, "tiny", write_llama(tmp_path_factory.mktemp("m") / "tiny"))
        yield store


def put(store: Store, name: str, folder: Path) -> str:
    """A folder as an artifact; its name with the digest."""
    with store.draft("model", name) as draft:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True)
        return f"{name}-{draft.commit().digest[:12]}"


class Service:
    """Serve's REST interface, as KubeRay uses it."""

    def __init__(self, store: Store, config: dict[str, Any]) -> None:
        record = read_record(store)
        assert record is not None
        self._url = f"{record.dashboard_url}/api/serve/applications/"
        self._token = store_token(store).read_text().strip()
        self.config = config
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"

    def _call(self, method: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return dict(json.loads(response.read() or b"{}"))

    def apply(self, models: list[str]) -> None:
        (application,) = self.config["applications"]
        application["args"]["models"] = [{"ref": ref} for ref in models]
        self._call("PUT", self.config)

    def application(self) -> dict[str, Any]:
        return dict(self._call("GET")["applications"]["raylm"])

    def wait(self, status: str) -> dict[str, Any]:
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := self.application())["status"] != status:
            assert time.monotonic() < deadline_s, found["message"]
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def asked_all_along(service: Service, model: str, num_clients: int = 2) -> Iterator[list[str]]:
    """Clients that ask one request after the other until the end of the block; what each saw:
    "" for an answer, else what was wrong."""
    seen: list[str] = []
    over = threading.Event()

    def client() -> None:
        body = {"model": model, "prompt": "the quick", "max_tokens": 16, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        data = json.dumps(body).encode()
        while not over.is_set():
            request = urllib.request.Request(f"{service.url}/v1/completions", data, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    used = json.load(response)["usage"]["completion_tokens"]
                seen.append("" if used == 16 else f"{used} tokens")
            except Exception as error:
                text = error.read().decode() if hasattr(error, "read") else repr(error)
                seen.append(text)
            time.sleep(0.05)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=90)


@pytest.fixture(scope="module")
def service(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Service:
    from tests.helm.charts import serve_config, serves

    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder)
    config = serve_config(serves("minimal", "engine.precision=f32"))
    config["http_options"] |= {"host": "127.0.0.1", "port": free_port("127.0.0.1", 0)}
    args = config["applications"][0]["args"]
    args["store"], args["cache_root"] = str(store.root), str(store.root / "engine")
    args["serve"] |= {"api_keys": str(folder / "keys"), "cpus_per_replica": 0.25}
    return Service(store, config)


@pytest.fixture
def asked(service: Service, tmp_path: Path) -> Callable[..., int]:
    """The probe of a pod, asked of the endpoint here."""
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "raylm").mkdir()

    def run(*more: str) -> int:
        places = [f"--key-file={tmp_path / 'key'}", f"--mark={tmp_path / 'raylm/answered'}"]
        return probe.main([f"--url={service.url}", *places, *more])

    return run


def test_the_charts_config_serves_a_model_of_the_store(
    service: Service, asked: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    service.apply(["tiny"])
    found = service.wait("RUNNING")
    assert set(found["deployments"]) == {"gateway", "engine-tiny", "ledger"}
    for name in ("gateway", "engine-tiny"):
        deployment = found["deployments"][name]["deployment_config"]
        assert (deployment["num_replicas"], deployment["max_surge_percent"]) == (2, 25)
    assert asked("--wait-s=60", "--max-tokens=8", "--show") == 0
    assert capsys.readouterr().out.startswith("tiny: '")


def test_a_probe_asks_for_a_token_only_now_and_then(
    service: Service, asked: Callable[..., int], tmp_path: Path
) -> None:
    assert asked("--token-every-s=60") == 0
    stamp = (tmp_path / "raylm/answered").stat().st_mtime_ns
    assert asked("--token-every-s=60") == 0
    assert (tmp_path / "raylm/answered").stat().st_mtime_ns == stamp
    assert asked() == 0
    assert (tmp_path / "raylm/answered").stat().st_mtime_ns > stamp


def test_a_wrong_key_or_nobody_there_is_not_ready(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("sk-wrong-0123456789abcdef")
    options = [f"--key-file={tmp_path / 'key'}", f"--mark={tmp_path / 'no/mark'}"]
    assert probe.main([f"--url={service.url}", *options]) == 1
    assert "401" in capsys.readouterr().err
    assert probe.main([f"--url=http://127.0.0.1:{free_port('127.0.0.1', 0)}", *options]) == 1
    assert "/readyz" in capsys.readouterr().err


def test_the_same_config_again_restarts_nothing(service: Service) -> None:
    before = sorted(p.pid for name in ("gateway", "engine-tiny") for p in replicas(name))
    assert len(before) == 4
    service.apply(["tiny"])
    time.sleep(2)
    service.wait("RUNNING")
    assert sorted(p.pid for name in ("gateway", "engine-tiny") for p in replicas(name)) == before


def test_a_model_that_is_not_there_leaves_the_old_one_and_says_why(
    service: Service, asked: Callable[..., int]
) -> None:
    service.apply(["tinny"])
    found = service.wait("DEPLOY_FAILED")
    kuberay = {"activeServiceStatus": {"applicationStatuses": {"raylm": found}}}
    (cause,) = causes(kuberay, [])
    assert cause.startswith("there is no model 'tinny'")
    assert asked() == 0


def test_a_model_that_does_not_load_leaves_the_old_one_and_says_why(
    service: Service, store: Store, tmp_path: Path
) -> None:
    folder = write_llama(tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    broken = put(store, "broken", folder)
    service.apply(["tiny"])
    service.wait("RUNNING")
    before = sorted(p.pid for p in replicas("engine-tiny"))
    with asked_all_along(service, "tiny") as seen:
        service.apply([broken])
        found = service.wait("DEPLOY_FAILED")
    kuberay = {"activeServiceStatus": {"applicationStatuses": {"raylm": found}}}
    (cause,) = causes(kuberay, [])
    assert f"{broken}/model.safetensors is damaged" in cause
    assert len(seen) > 4 and not any(seen)
    assert sorted(p.pid for p in replicas("engine-tiny")) == before


def test_after_it_a_good_one_takes_the_place_without_a_failed_request(
    service: Service, store: Store, tmp_path: Path
) -> None:
    new = put(store, "tiny", write_llama(tmp_path / "tiny", hidden=128))
    before = {p.pid for name in ("gateway", "engine-tiny") for p in replicas(name)}
    with asked_all_along(service, "tiny") as seen:
        service.apply([new])
        service.wait("RUNNING")
    assert len(seen) > 4 and not any(seen)
    after = {p.pid for name in ("gateway", "engine-tiny") for p in replicas(name)}
    assert len(after) == 4 and not after & before
    request = urllib.request.Request(
        f"{service.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert new in {model["id"] for model in json.load(response)["data"]}
