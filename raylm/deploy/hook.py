"""A hook for `ray start` (RAY_START_HOOK): what its command line cannot say."""

from __future__ import annotations

from typing import Any


def without_ray_client(params: Any, head: bool) -> None:
    """Do not start Ray's client server: an open port and a process that raylm never uses."""
    params.ray_client_server_port = None
