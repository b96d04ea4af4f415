"""Clusters for tests, shared and not, and a look into what is deployed on them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from ray._private import ray_constants

from raylm.config.cluster import ClusterConfig
from raylm.deploy.cluster import connect, down, up
from raylm.serve.app import Endpoint, undeploy
from raylm.store import Store

KEY = "sk-test-0123456789abcdef"
TOKEN = "RAY_AUTH_TOKEN_PATH"
"""A variable by which the processes of a cluster are known: each has its own."""


@contextlib.contextmanager
def cluster(root: Path) -> Iterator[Store]:
    """A Ray cluster of this machine, connected, with an empty store.

    A process is connected to one cluster at a time: the shared one ends first.
    """
    SHARED.end()
    store = Store(root)
    # Ray reads this once, when it is imported; other tests may have done that already.
    ray_constants.ENABLE_RAY_CLUSTER = False
    up(store, ClusterConfig(num_cpus=4, object_store_bytes=100 * 2**20))
    try:
        with connect(store, ClusterConfig()):
            yield store
    finally:
        down(store, drain_s=0)


class SharedCluster:
    """The cluster of all modules that need nothing of their own; it starts when it is wanted, and
    again when it was ended."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._store: Store | None = None
        self._is_spent = False

    def store(self, new_root: Callable[[], Path]) -> Store:
        """Its store; what is deployed on it is ended by who deployed it."""
        if self._store is None:
            self._store = self._held.enter_context(cluster(new_root()))
        return self._store

    def spend(self) -> None:
        """The module that is at work kills more than what it deployed: no other is to have it."""
        self._is_spent = True

    def clear(self) -> None:
        """For the next module: without what a failed test has left, or not at all."""
        if self._store is None:
            return
        try:
            undeploy(drain_s=0)
        except Exception:
            self._is_spent = True
        if self._is_spent:
            self.end()

    def end(self) -> None:
        """End it, if it is up."""
        self._store, self._is_spent = None, False
        self._held.close()


SHARED = SharedCluster()


def write_keys(folder: Path) -> None:
    """A file `keys` with the one key."""
    (folder / "keys").write_text(KEY + "\n")
    (folder / "keys").chmod(0o600)


def get(endpoint: Endpoint, path: str, key: str | None = KEY) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, dict(response.getheaders())


def figures(endpoint: Endpoint, name: str, label: str = "") -> list[float]:
    lines = get(endpoint, "/metrics")[1].splitlines()
    found = [line for line in lines if line.startswith(name + "{") and label in line]
    return [float(line.rpartition(" ")[2]) for line in found]


def ours(title: str) -> list[psutil.Process]:
    """Processes of the cluster that is connected here, and of no other that runs beside it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            named = title in (process.cmdline() or [""])[0]
            if named and process.environ().get(TOKEN) == os.environ[TOKEN]:
                found.append(process)
    return found


def replicas(deployment: str) -> list[psutil.Process]:
    return ours(f"ray::ServeReplica:raylm:{deployment}")


def num_running(endpoint: Endpoint) -> float:
    return sum(figures(endpoint, "raylm_engine_requests_running"))


def until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_replicas(endpoint: Endpoint, num: int) -> None:
    def ready() -> bool:
        status, text, _ = get(endpoint, "/readyz")
        return status == 200 and json.loads(text)["models"]["tiny"]["replicas_ready"] == num

    until(ready, 120)
