"""API keys: every path but two needs one, decided before anything else sees the request.

Public: `/healthz` and `/readyz`, which probes must reach. `/metrics` names models, tenants and
traffic, so it needs a key too (Prometheus sends one with `authorization:`), with a scope of its
own. A path that nobody thought of is closed, not open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from raylm.config.serve import ServeConfig
from raylm.errors import ConfigError, RequestError
from raylm.serve.failure import error_response
from raylm.serve.keyring import Keyring
from raylm.serve.keys import Key, read_keys
from raylm.serve.tenant import ANYONE, Tenant, set_tenant

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})


def key_file(config: ServeConfig, base_dir: Path, store_file: Path | None) -> Path | None:
    """Where the keys lie: where the configuration says, else in the store if it has some."""
    if config.api_keys is not None:
        return (base_dir / Path(config.api_keys).expanduser()).absolute()
    return store_file if store_file is not None and store_file.exists() else None


def keys_for(config: ServeConfig, path: Path | None) -> tuple[Key, ...]:
    """The keys that the gateways begin with; none where the endpoint is for this machine alone.

    Raises:
        ConfigError: they cannot be used, or the host is not loopback and there are none.
    """
    if path is not None:
        keys = read_keys(path)
        if not keys:
            raise ConfigError(
                f"{path} has no key that is not revoked",
                code="keys-empty",
                hint="raylm keys create NAME",
            )
        return keys
    if not ip_address(config.host).is_loopback:
        raise ConfigError(
            f"serve.host={config.host} is reachable from other machines and there are no API keys",
            code="keys-needed",
            hint="`raylm keys create NAME`, or set serve.api_keys to a file of mode 0600 with one "
            "key a line, or serve.host to 127.0.0.1",
        )
    return ()


class Auth:
    """ASGI middleware that lets only requests with a known key pass, before anything reads them."""

    def __init__(self, app: ASGIApp, keyring: Keyring, on_refused: Callable[[], None]) -> None:
        self._app = app
        self._keyring = keyring
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its tenant's name, or answer 401 or 403."""
        if scope["type"] == "lifespan" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            set_tenant(scope, await self._tenant(scope))
        except RequestError as refusal:
            self._on_refused()
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _tenant(self, scope: Scope) -> Tenant:
        """Whose request it is.

        Raises:
            RequestError: 401 without a key that is known and has not expired; 403 without the
                scope that the path needs.
        """
        if self._keyring.is_open:
            return ANYONE
        await self._keyring.refresh()
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            raise RequestError(
                "no API key was given; send it as `Authorization: Bearer KEY`",
                code="missing-api-key",
                status=401,
            )
        scheme, _, key = values[0].decode("latin-1").partition(" ")
        tenant = self._keyring.tenant(key)
        if len(values) > 1 or scheme.lower() != "bearer" or tenant is None:
            raise RequestError("the API key is not known", code="invalid-api-key", status=401)
        if tenant.expires_s is not None and tenant.expires_s <= time.time():
            raise RequestError("the API key has expired", code="expired-api-key", status=401)
        tenant.check_scope(scope["path"])
        return tenant
