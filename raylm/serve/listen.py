"""Where a replica listens: on its node's address, never on all interfaces.

Every replica of Ray Serve has a gRPC server for calls between deployments. Ray 2.60 binds it to
`[::]` (ray/serve/_private/replica.py, `_on_initialized`), with no setting for it. Ray's token
guards it where token authentication is on, but it need not be reachable from elsewhere at all:
the others reach it at the node's address, which is loopback on a cluster of one machine.

A gateway has an HTTP server for HAProxy, which Ray binds to the endpoint's host: with 0.0.0.0
everybody could go past HAProxy, and so past the deadlines that uvicorn does not have. On a
cluster of one machine it is on loopback, too; elsewhere other nodes' HAProxy must reach it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import ray
from ray.serve._private import replica

_ANY = "[::]:"


def listen_on_node_address() -> None:
    """Call in a replica's constructor: the servers start after it."""
    bind, serve_http = replica.add_port_to_grpc_server, replica.start_asgi_http_server
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address

    def on_node_address(server: Any, where: str) -> int:
        return int(bind(server, where.replace(_ANY, f"{host}:", 1)))

    async def http_on_loopback(app: Any, options: Any, **settings: Any) -> Any:
        return await serve_http(app, options.model_copy(update={"host": address}), **settings)

    replica.add_port_to_grpc_server = on_node_address
    if ip_address(address).is_loopback:
        replica.start_asgi_http_server = http_on_loopback
