"""The real thing: one cluster is started once, looked at from all sides, and ended."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from raylm.config.cluster import ClusterConfig
from raylm.deploy import cluster, owned
from raylm.deploy.environment import temp_dir_for
from raylm.deploy.logs import find_logs, tail
from raylm.deploy.record import ClusterInfo, read_record, write_record
from raylm.deploy.status import status
from raylm.errors import ConfigError, HostError
from raylm.store import Store

pytestmark = pytest.mark.ray

CONFIG = ClusterConfig(object_store_bytes=100 * 2**20, num_cpus=2)
UP = """
import sys
from raylm.config.cluster import ClusterConfig
from raylm.deploy.cluster import up
from raylm.store import Store
print(up(Store(sys.argv[1]), ClusterConfig(object_store_bytes=100 * 2**20, num_cpus=2)).id)
"""
CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("resources", ray.cluster_resources()["CPU"])
"""
DRIVER = """
import os, signal, sys, time
from raylm.config.cluster import ClusterConfig
from raylm.deploy.connect import connect
from raylm.store import Store
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with connect(Store(sys.argv[1]), ClusterConfig(object_store_bytes=100 * 2**20)) as connection:
    import ray
    mark = ray.get(ray.remote(lambda: os.environ["RAYLM_CLUSTER_ID"]).remote())
    print(mark, flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("store"))
    yield opened
    cluster.down(opened, drain_s=0)


@pytest.fixture(scope="module")
def info(store: Store) -> ClusterInfo:
    """Made by two commands at once."""
    command = [sys.executable, "-c", UP, str(store.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=300)[0].strip() for process in both}
    found = read_record(store)
    assert found is not None
    assert ids == {found.id}, "two at once make one cluster"
    return found


def client(address: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    base = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", CLIENT, address],
        env={**base, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def wait_for_none(mark: str, patience_s: float) -> list[int]:
    deadline = time.monotonic() + patience_s
    while (left := owned.marked(owned.MARK, mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def test_up_again_returns_what_is_up(store: Store, info: ClusterInfo) -> None:
    assert cluster.up(store, CONFIG) == info
    assert info.is_alive


def test_secrets_are_for_their_owner_alone(store: Store, info: ClusterInfo) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    folder = store.root / "cluster"
    token = folder / "token"
    assert mode(folder) == mode(info.temp_dir) == 0o700
    assert mode(token) == mode(folder / "cluster.json") == mode(folder / "head.log") == 0o600
    secret = token.read_text()
    assert len(secret) == 64
    assert secret not in (folder / "cluster.json").read_text()
    assert secret not in (folder / "head.log").read_text()


def test_every_listener_is_on_loopback(info: ClusterInfo) -> None:
    addresses = set()
    pids = owned.marked(owned.MARK, info.id)
    for pid in pids:
        for socket in psutil.Process(pid).net_connections("tcp"):
            if socket.status == psutil.CONN_LISTEN:
                addresses.add(socket.laddr.ip.removeprefix("::ffff:"))
    assert len(pids) >= 6
    assert addresses == {"127.0.0.1"}


def test_a_client_needs_the_token(info: ClusterInfo, tmp_path: Path) -> None:
    assert "resources 2.0" in client(info.address, info.env).stdout
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    for env in (
        {**info.env, "RAY_AUTH_TOKEN_PATH": str(wrong)},
        {**info.env, "RAY_AUTH_MODE": "disabled"},
    ):
        refused = client(info.address, env)
        assert refused.returncode != 0
        assert "resources" not in refused.stdout


def test_connect_uses_the_cluster_that_is_up_and_leaves_the_process_as_it_was(
    store: Store, info: ClusterInfo
) -> None:
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with cluster.connect(store, ClusterConfig()) as connection:
        assert connection.address == info.address
        assert not connection.is_private
        with cluster.connect(store, ClusterConfig()) as inner:
            assert not inner.is_private
        import ray

        assert ray.is_initialized(), "an inner connect ends nothing"
        assert signal.getsignal(signal.SIGTERM) is handler
    assert not ray.is_initialized()
    # Ray itself adds two of its own.
    assert {k: v for k, v in os.environ.items() if k in environment or k in info.env} == environment


def test_status_and_logs(store: Store, info: ClusterInfo) -> None:
    found = status(store)
    assert found.is_up
    assert (found.address, found.cpus, found.deployments) == (info.address, 2.0, ())
    assert json.loads(json.dumps(found.to_dict()))["id"] == info.id
    paths = find_logs(store)
    assert store.root / "cluster" / "head.log" in paths
    assert any(path.name == "raylet.out" for path in paths)
    assert len(tail(store.root / "cluster" / "head.log", 3)) == 3
    with pytest.raises(ConfigError) as error:
        find_logs(store, "gatway")
    assert error.value.hint == "did you mean 'gateway'?"


def test_an_address_where_nothing_answers_is_an_error_of_one_line(store: Store) -> None:
    with (
        pytest.raises(HostError) as error,
        cluster.connect(store, ClusterConfig(address="127.0.0.1:9")),
    ):
        pass
    assert error.value.code == "cluster-unreachable"
    assert "127.0.0.1:9" in error.value.message


def test_down_ends_everything_and_then_has_nothing_to_do(store: Store, info: ClusterInfo) -> None:
    stopped = cluster.down(store)
    assert stopped.was_running
    assert stopped.num_processes >= 6
    assert owned.marked(owned.MARK, info.id) == []
    assert not info.temp_dir.exists()
    assert read_record(store) is None
    assert not status(store).is_up
    again = cluster.down(store)
    assert (again.was_running, again.num_processes) == (False, 0)


def test_a_stale_record_ends_nobody_else(store: Store, info: ClusterInfo) -> None:
    # After a reboot its number is another process's: here, this one's.
    stale = replace(info, pid=os.getpid(), create_time=info.create_time - 86_400)
    write_record(store, stale)
    assert not stale.is_alive
    assert not cluster.down(store).was_running
    assert read_record(store) is None


def test_a_start_that_fails_says_why_and_leaves_nothing(
    store: Store, info: ClusterInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_much = ClusterConfig(object_store_bytes=2**50)
    begun = time.monotonic()
    with pytest.raises(HostError) as error:
        cluster.up(store, too_much)
    assert error.value.code == "cluster-start-failed"
    assert "head.log" in (error.value.hint or "")
    assert time.monotonic() - begun < 120
    assert owned.marked(owned.STORE_MARK, str(store.root)) == []
    assert read_record(store) is None

    with pytest.raises(HostError, match="within 1 s"):
        cluster.up(store, CONFIG, timeout_s=1)
    assert owned.marked(owned.STORE_MARK, str(store.root)) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_private_cluster_ends_with_its_driver(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(240, driver.kill)
    watchdog.start()
    mark = ""
    try:
        assert driver.stdout is not None
        mark = driver.stdout.readline().strip()
        assert mark, driver.communicate(timeout=30)[1]
        assert len(owned.marked(owned.MARK, mark)) >= 5
        driver.send_signal(number)
        _, said = driver.communicate(timeout=30)
        assert driver.returncode == code
        assert "***" not in said, "no stack trace of Ray's own signal handler"
        assert wait_for_none(mark, 30) == []
    finally:
        watchdog.cancel()
        driver.kill()
        if mark:
            shutil.rmtree(temp_dir_for(mark), ignore_errors=True)
