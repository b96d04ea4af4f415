"""Dashboard: where a cluster takes jobs, and the secret it wants to see.

The store's own cluster by default; another by the URL of its dashboard, with the token where
Ray's own tools look for it: $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from raylm.deploy.ports import is_listening
from raylm.deploy.record import ClusterInfo, read_record
from raylm.errors import ConfigError, HostError
from raylm.store import Store

DEFAULT_PORT = 8265


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A cluster's HTTP side: its dashboard and its jobs API."""

    url: str
    """`http://host:port`, without a slash at its end."""
    token: str | None = field(repr=False)
    """None asks without one, which a cluster that has no authentication takes."""
    is_ours: bool
    """`raylm up` started it for this store, on this machine."""


def find_dashboard(
    store: Store, address: str | None = None, environment: Mapping[str, str] | None = None
) -> Dashboard:
    """The dashboard at an address, or that of the store's cluster.

    Raises:
        ConfigError: the address is none of a dashboard.
        HostError: no cluster is up, nothing answers there, or the token's file cannot be read.
    """
    info = read_record(store)
    if address is None:
        if info is None or not info.is_alive:
            raise HostError(
                f"no cluster is up for the store {store.root}",
                code="cluster-not-up",
                hint="`raylm up` starts one on this machine; --address http://HOST:8265 (its "
                "dashboard) names another",
            )
        return Dashboard(info.dashboard_url, _own_token(info), is_ours=True)
    url = dashboard_url(address)
    parts = urlsplit(url)
    if not is_listening(parts.port or DEFAULT_PORT, parts.hostname or "", timeout_s=5):
        raise HostError(
            f"nothing answers at {url} (--address)",
            code="cluster-unreachable",
            hint="is the cluster up, its dashboard's port open, and this machine allowed there?",
        )
    if info is not None and url == info.dashboard_url:
        return Dashboard(url, _own_token(info), is_ours=True)
    return Dashboard(url, find_token(os.environ if environment is None else environment), False)


def dashboard_url(address: str) -> str:
    """`http://host:port` of what people write: a URL, or host:port, or a host.

    Raises:
        ConfigError: it is of another kind (`ray://`), or no address at all.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else None)
    except ValueError:
        host = port = None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ConfigError(
            f"{address!r} (--address) is no address of a Ray dashboard",
            code="cluster-address",
            hint="jobs go to the dashboard: --address http://10.0.0.5:8265",
        )
    # Names of loopback are one place, and IPv6 addresses keep their brackets.
    name = "127.0.0.1" if host == "localhost" else f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{port or DEFAULT_PORT}"


def find_token(environment: Mapping[str, str]) -> str | None:
    """The token where Ray's own tools look for it, in their order.

    Raises:
        HostError: $RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    if path := environment.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(path).expanduser())
    default = Path("~/.ray/auth_token").expanduser()
    return _read(default) if default.is_file() else None


def _own_token(info: ClusterInfo) -> str | None:
    path = info.env.get("RAY_AUTH_TOKEN_PATH")
    return _read(Path(path)) if path else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise HostError(
            f"the token's file {path} cannot be read: {error}",
            code="cluster-token-missing",
            hint="$RAY_AUTH_TOKEN_PATH names the file with the cluster's token",
        ) from error
