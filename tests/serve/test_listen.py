"""Nobody gets past HAProxy: a gateway's own server is for the machine, or for the nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray
from ray.serve._private import replica
from ray.serve.config import HTTPOptions

from raylm.serve.listen import listen_on_node_address


@pytest.mark.parametrize(
    ("node", "http", "grpc"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:7"),
        ("10.0.0.5", "0.0.0.0", "10.0.0.5:7"),
        ("::1", "::1", "[::1]:7"),
    ],
)
def test_servers_of_a_replica_listen_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, node: str, http: str, grpc: str
) -> None:
    hosts: list[str] = []

    async def serve_http(app: Any, options: HTTPOptions, **settings: Any) -> str:
        hosts.append(str(options.host))
        return f"{options.port} {settings['event_loop']}"

    monkeypatch.setattr(replica, "start_asgi_http_server", serve_http)
    monkeypatch.setattr(
        replica, "add_port_to_grpc_server", lambda server, where: hosts.append(where) or 7
    )
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    listen_on_node_address()
    options = HTTPOptions(host="0.0.0.0", port=9)
    assert asyncio.run(replica.start_asgi_http_server(None, options, event_loop="e")) == "9 e"
    assert replica.add_port_to_grpc_server(None, "[::]:7") == 7
    assert hosts == [http, grpc]
