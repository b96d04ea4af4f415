"""A real API server without nodes: etcd and kube-apiserver, on loopback, gone afterwards.

It validates, stores and authorizes as every cluster does; nothing that is made there starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helm.charts import NAMESPACE, ROOT

ADMIN, EDITOR = "token-of-admin", "token-of-editor"
START_S = 60.0


def find_programs() -> tuple[str, str]:
    """etcd and kube-apiserver; skips the test where one is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm/k8s/bin"
    built = [p for p in sorted(cache.glob("kubernetes-*/kube-apiserver")) if os.access(p, os.X_OK)]
    server = shutil.which("kube-apiserver") or (str(built[0]) if built else None)
    etcd = shutil.which("etcd")
    if server is None or etcd is None or shutil.which("kubectl") is None:
        pytest.skip(
            "etcd, kube-apiserver and kubectl are not all here (`make cluster-up` has them)"
        )
    return etcd, server


def kuberay_definitions() -> Path:
    """KubeRay's definitions: the pinned ones, or those of its Go module."""
    modules = Path(os.environ.get("GOMODCACHE") or Path.home() / "go/pkg/mod")
    inside = "github.com/ray-project/kuberay/ray-operator@v1.6.1/config/crd/bases"
    for place in (ROOT / "k8s/kuberay/crd", modules / inside):
        if list(place.glob("ray.io_*.yaml")):
            return place
    pytest.skip("KubeRay's definitions are neither pinned nor among Go's modules")


def free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


@contextlib.contextmanager
def api_server(folder: Path) -> Iterator[Path]:
    """The folder with `admin.kubeconfig` and `editor.kubeconfig`, who may edit one namespace."""
    etcd, server = find_programs()
    client, peer, port = free_ports(3)
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens = folder / "tokens.csv"
    tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n{EDITOR},editor,2\n')
    urls = [f"http://127.0.0.1:{number}" for number in (client, peer)]
    store = [
        etcd, f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={urls[0]}",
        f"--advertise-client-urls={urls[0]}", f"--listen-peer-urls={urls[1]}",
    ]  # fmt: skip
    api = [
        server, f"--etcd-servers={urls[0]}", f"--secure-port={port}", "--bind-address=127.0.0.1",
        f"--cert-dir={folder / 'certs'}", f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}", f"--token-auth-file={tokens}",
        "--service-account-issuer=https://raylm.test", "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.99.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
    ]  # fmt: skip
    with running(store, folder / "etcd.log"), running(api, folder / "api.log"):
        _wait(port)
        for name, token in (("admin", ADMIN), ("editor", EDITOR)):
            (folder / f"{name}.kubeconfig").write_text(_kubeconfig(port, token))
        yield folder


def _wait(port: int) -> None:
    deadline_s = time.monotonic() + START_S
    context = ssl._create_unverified_context()
    headers = {"Authorization": f"Bearer {ADMIN}"}
    request = urllib.request.Request(f"https://127.0.0.1:{port}/readyz", headers=headers)
    while not _answers(request, context):
        assert time.monotonic() < deadline_s, "the API server does not come up"
        time.sleep(0.2)


def _answers(request: urllib.request.Request, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return bool(response.read() == b"ok")
    except OSError:
        return False


def _kubeconfig(port: int, token: str) -> str:
    return f"""
apiVersion: v1
kind: Config
current-context: test
clusters:
  - {{name: c, cluster: {{server: "https://127.0.0.1:{port}", insecure-skip-tls-verify: true}}}}
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: test, context: {{cluster: c, user: u, namespace: {NAMESPACE}}}}}]
"""
