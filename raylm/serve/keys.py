"""API keys in files: a key store that `raylm keys` writes, or a plain list of keys.

    <store>/keys.json    tenants with scopes, models, limits, expiry; hashes instead of keys
    a plain file         one key a line, each a tenant of its own without limits

A key is 256 random bits, so that its SHA-256 tells nothing of it and cannot be searched: a slow
hash and a salt protect what people choose, and would cost every request. A file is written as a
whole and renamed; gateways look at it again while they run (`raylm.serve.keyring`).
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from raylm.artifact import write_atomic
from raylm.errors import ConfigError, nearest
from raylm.serve.tenant import Limits, Scope, Tenant
from raylm.serve.wire import MAX_PRIORITY

FILE = "keys.json"
MIN_KEY_CHARS = 16
_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Key:
    """What a gateway knows of a key: the SHA-256 of its text, and whose it is."""

    digest: bytes
    tenant: Tenant


class KeyRecord(BaseModel):
    """A key in the key store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """The tenant's."""
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(("infer",), min_length=1)
    models: tuple[str, ...] | None = Field(None, min_length=1)
    requests_per_minute: _Positive | None = None
    tokens_per_minute: _Positive | None = None
    max_concurrency: _Positive | None = None
    weight: float = Field(1.0, ge=0.001, le=1000)
    max_priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def state(self, now: datetime) -> Literal["live", "expired", "revoked"]:
        """Whether the key opens anything."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "live"

    def key(self) -> Key:
        """For the gateways."""
        limits = Limits(self.requests_per_minute, self.tokens_per_minute, self.max_concurrency)
        tenant = Tenant(
            id=self.id,
            name=self.name,
            scopes=self.scopes,
            models=self.models,
            limits=limits,
            weight=self.weight,
            max_priority=self.max_priority,
            expires_s=None if self.expires is None else self.expires.timestamp(),
        )
        return Key(bytes.fromhex(self.sha256), tenant)


class KeyStore(BaseModel):
    """The file that `raylm keys` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()

    def find(self, name: str, now: datetime) -> KeyRecord | None:
        """The live key of a name."""
        return next((k for k in self.keys if k.name == name and k.state(now) == "live"), None)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new key is to allow; checked when it becomes a record."""

    name: str
    scopes: tuple[str, ...] = ("infer",)
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    weight: float = 1.0
    max_priority: int = 0
    expires: datetime | None = None


def hash_key(key: str) -> bytes:
    """SHA-256 of a key's text."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file of either kind; of a key store, those that are not revoked.

    Raises:
        ConfigError: the file is missing, readable by others, empty, malformed, or has a weak key.
    """
    text = _read_private(path)
    if text.lstrip().startswith("{"):
        return tuple(r.key() for r in _parse(path, text).keys if r.revoked is None)
    return _read_lines(path, text)


def read_store(path: Path) -> KeyStore:
    """The key store in a file; an empty one where there is none.

    Raises:
        ConfigError: it cannot be read, or is a plain list of keys.
    """
    if not path.exists():
        return KeyStore()
    text = _read_private(path)
    if not text.lstrip().startswith("{"):
        raise ConfigError(
            f"{path} is a plain list of keys, which is edited by hand",
            code="keys-plain",
            hint="for keys with limits, leave serve.api_keys out or name a file that is not there",
        )
    return _parse(path, text)


def create(path: Path, grant: Grant, now: datetime) -> tuple[str, KeyRecord]:
    """Add a key to a key store; the key itself is returned, and kept nowhere.

    Raises:
        ConfigError: the name has a live key already, or something asked for is not possible.
    """
    key = f"sk-raylm-{secrets.token_urlsafe(32)}"
    try:
        record = KeyRecord.model_validate(
            {
                **dataclasses.asdict(grant),
                "id": secrets.token_hex(8),
                "sha256": hash_key(key).hex(),
                "created": now,
            }
        )
    except ValidationError as error:
        raise ConfigError(_problem(error), code="key-invalid") from None
    if record.expires is not None and record.expires <= now:
        raise ConfigError("the key would have expired already", code="key-invalid")
    with _locked(path):
        store = read_store(path)
        if store.find(grant.name, now) is not None:
            raise ConfigError(
                f"{grant.name!r} has a key already",
                code="key-exists",
                hint=f"`raylm keys revoke {grant.name}` first, or choose another name",
            )
        _write(path, (*store.keys, record))
    return key, record


def revoke(path: Path, name: str, now: datetime) -> KeyRecord:
    """Revoke the live key of a name.

    Raises:
        ConfigError: there is none.
    """
    with _locked(path):
        store = read_store(path)
        found = store.find(name, now)
        if found is None:
            live = [k.name for k in store.keys if k.state(now) == "live"]
            close = nearest(name, live)
            raise ConfigError(
                f"{name!r} has no live key in {path}",
                code="key-not-found",
                hint=f"did you mean {close!r}?" if close else "`raylm keys ls` lists them",
            )
        gone = found.model_copy(update={"revoked": now})
        _write(path, tuple(gone if k is found else k for k in store.keys))
    return gone


def now_utc() -> datetime:
    """Wall-clock time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _read_lines(path: Path, text: str) -> tuple[Key, ...]:
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"serve.api_keys: {path} has no key", code="keys-empty")
    found = []
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_CHARS or not key.isascii() or " " in key:
            raise ConfigError(
                f"serve.api_keys: key {number} of {path} is not usable: "
                f"{MIN_KEY_CHARS} or more ASCII characters without spaces are needed",
                code="keys-weak",
            )
        digest = hash_key(key)
        # The number moves when lines do; the id must not, and never leaves the cluster.
        found.append(Key(digest, Tenant(hashlib.sha256(digest).hexdigest(), f"key-{number}")))
    return tuple(found)


def _read_private(path: Path) -> str:
    try:
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"serve.api_keys: cannot read {path}: {error}", code="keys-unreadable"
        ) from error
    # A secret that Kubernetes mounts is root's, and readable by the group of the pod alone; whoever
    # serves can read it by no other right, and cannot change its mode.
    is_mounted = found.st_uid != os.geteuid() and not mode & 0o037
    if mode & 0o077 and not is_mounted:
        raise ConfigError(
            f"serve.api_keys: {path} has mode {mode:04o}; others could read the keys",
            code="keys-exposed",
            hint=f"chmod 600 {path}",
        )
    return text


def _parse(path: Path, text: str) -> KeyStore:
    try:
        return KeyStore.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_problem(error)}", code="keys-malformed") from None


def _problem(error: ValidationError) -> str:
    """The first problem, without the value: it may be what must not be shown."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def _write(path: Path, keys: Sequence[KeyRecord]) -> None:
    text = KeyStore(keys=tuple(keys)).model_dump(mode="json")
    write_atomic(path, json.dumps(text, indent=2) + "\n", mode=0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Several `raylm keys` at once must not lose each other's keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
