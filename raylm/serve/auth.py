"""API keys: every path but two needs one, decided before anything else sees the request.

Public: `/healthz` and `/readyz`, which probes must reach. `/metrics` names models and traffic,
so it needs a key too (Prometheus sends one with `authorization:`). A path that nobody thought
of is closed, not open.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from raylm.config.serve import ServeConfig
from raylm.errors import ConfigError, RequestError
from raylm.serve.failure import error_response

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
MIN_KEY_CHARS = 16


def hash_key(key: str) -> bytes:
    """SHA-256; keys are long and random, so that a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Hashes of the keys in a file: one a line, `#` starts a comment.

    Raises:
        ConfigError: the file is missing, readable by others, empty, or has a weak key.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"serve.api_keys: cannot read {path}: {error}", code="keys-unreadable"
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"serve.api_keys: {path} has mode {mode:04o}; others could read the keys",
            code="keys-exposed",
            hint=f"chmod 600 {path}",
        )
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"serve.api_keys: {path} has no key", code="keys-empty")
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_CHARS or not key.isascii() or " " in key:
            raise ConfigError(
                f"serve.api_keys: key {number} of {path} is not usable: "
                f"{MIN_KEY_CHARS} or more ASCII characters without spaces are needed",
                code="keys-weak",
            )
    return tuple(hash_key(key) for key in keys)


def keys_for(config: ServeConfig, base_dir: Path) -> tuple[bytes, ...]:
    """The hashes that the gateways check; none where the endpoint is for this machine alone.

    Raises:
        ConfigError: the host is not loopback and there are no keys.
    """
    if config.api_keys is not None:
        return read_keys(base_dir / Path(config.api_keys).expanduser())
    if not ip_address(config.host).is_loopback:
        raise ConfigError(
            f"serve.host={config.host} is reachable from other machines and serve.api_keys is "
            "not set",
            code="keys-needed",
            hint="set serve.api_keys to a file of mode 0600 with one key a line, "
            "or serve.host to 127.0.0.1",
        )
    return ()


class Auth:
    """ASGI middleware that lets only requests with a known key pass; the outermost one."""

    def __init__(
        self, app: ASGIApp, hashes: Sequence[bytes], on_refused: Callable[[], None]
    ) -> None:
        self._app = app
        self._hashes = tuple(hashes)
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "lifespan" or not self._hashes or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._on_refused()
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> RequestError | None:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            return RequestError(
                "no API key was given; send it as `Authorization: Bearer KEY`",
                code="missing-api-key",
                status=401,
            )
        scheme, _, key = values[0].decode("latin-1").partition(" ")
        digest = hash_key(key)
        # Every hash is compared, so that the time taken tells nothing of the keys.
        known = [hmac.compare_digest(digest, other) for other in self._hashes]
        if len(values) > 1 or scheme.lower() != "bearer" or not any(known):
            return RequestError("the API key is not known", code="invalid-api-key", status=401)
        return None
