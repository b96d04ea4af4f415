"""An application of this process behind the real HAProxy, configured as on a cluster.

What Serve puts between the two (its ASGI wrapper in the replica) is in test_hostile_on_ray.py.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from raylm.deploy.environment import cluster_env, prepare_temp_dir
from raylm.deploy.haproxy import HEADERS_S, SCRIPT, STILL_S
from raylm.deploy.ports import LOOPBACK, choose_ports
from raylm.serve.app import free_port


@dataclass(frozen=True, slots=True)
class Proxied:
    """Where HAProxy listens."""

    port: int

    def connect(self, data: bytes = b"", *, receive_bytes: int | None = None) -> socket.socket:
        """A connection on which `data` has been sent."""
        peer = socket.socket()
        if receive_bytes is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(20)
        peer.connect((LOOPBACK, self.port))
        peer.sendall(data)
        return peer

    def ask(self, data: bytes) -> bytes:
        """All that comes back until the connection is closed."""
        with self.connect(data) as peer:
            return read_all(peer)


def read_all(peer: socket.socket) -> bytes:
    """All that comes until the other side closes; the socket's timeout holds."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := peer.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def behind_haproxy(
    app: Any, *, headers_s: int = HEADERS_S, still_s: int = STILL_S
) -> Iterator[Proxied]:
    """Serve the application; other deadlines than raylm's own are for tests that wait for them."""
    with TemporaryDirectory(prefix="hx", dir="/tmp") as root, contextlib.ExitStack() as stack:
        folder, ports = Path(root) / "c", choose_ports()
        prepare_temp_dir(folder, ports)
        env = cluster_env("0123abcd", ports, temp_dir=folder, token=folder / "token")
        if headers_s != HEADERS_S:
            edit = (folder / SCRIPT).with_suffix(".defaults")
            line = f"timeout http-request {HEADERS_S}s"
            assert line in edit.read_text()
            edit.write_text(edit.read_text().replace(line, f"timeout http-request {headers_s}s"))
        up = stack.enter_context(_serving(app))
        port = free_port(LOOPBACK, 0)
        ha = folder / "ha"
        config = HAProxyConfig(
            socket_path=str(ha / "admin.sock"),
            metrics_socket_path=str(ha / "metrics.sock"),
            server_state_base=str(ha),
            server_state_file=str(ha / "state"),
            maxconn=int(env["RAY_SERVE_HAPROXY_MAXCONN"]),
            nbthread=int(env["RAY_SERVE_HAPROXY_NBTHREAD"]),
            stats_port=ports.haproxy_stats,
            metrics_port=ports.haproxy_metrics,
            timeout_client_s=still_s,
            http_options=HTTPOptions(host=LOOPBACK, port=port, keep_alive_timeout_s=90),
            has_received_routes=True,
            has_received_servers=True,
            is_head=True,
        )
        backend = BackendConfig(
            name="raylm", path_prefix="/", servers=[ServerConfig("gateway", LOOPBACK, up)]
        )
        api = HAProxyApi(config, {"raylm": backend}, str(ha / "haproxy.cfg"))
        api._generate_config_file_internal()
        proxy = subprocess.Popen(
            [folder / SCRIPT, "-db", "-f", ha / "haproxy.cfg"], stderr=subprocess.DEVNULL
        )
        try:
            _wait_listening(port)
            yield Proxied(port)
        finally:
            proxy.kill()
            proxy.wait(10)


@contextlib.contextmanager
def _serving(app: Any) -> Iterator[int]:
    """uvicorn with what Serve sets of it, and Serve's answer to HAProxy's checks; its port."""

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/-/healthz":
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"success"})

    port = free_port(LOOPBACK, 0)
    config = uvicorn.Config(
        checked, host=LOOPBACK, port=port, lifespan="off", log_config=None, timeout_keep_alive=90
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_listening(port)
        yield port
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def _wait_listening(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 5):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)
