"""The key store: what is kept, what is refused, and gateways that notice a change."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raylm.errors import ConfigError
from raylm.serve import keyring as keyring_file
from raylm.serve.keyring import Keyring
from raylm.serve.keys import Grant, create, hash_key, read_keys, read_store, revoke
from raylm.serve.tenant import Limits

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_a_key_is_kept_only_as_a_hash_in_a_private_file(tmp_path):
    path = tmp_path / "store" / "keys.json"
    key, _ = create(path, Grant("acme"), NOW)
    assert len(key) > 40 and path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert key not in text and key[9:] not in text
    assert json.loads(text)["keys"][0]["sha256"] == hash_key(key).hex()
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".keys.json.")] == [
        ".keys.json.lock"
    ]


def test_what_was_granted_reaches_the_gateways(tmp_path):
    path = tmp_path / "keys.json"
    grant = Grant(
        "acme", ("metrics",), ("tiny",), 5, 600, 2, 3.0, 7, expires=NOW + timedelta(days=1)
    )
    key, record = create(path, grant, NOW)
    (known,) = read_keys(path)
    assert known.digest == hash_key(key)
    tenant = known.tenant
    assert (tenant.name, tenant.id) == ("acme", record.id)
    assert tenant.limits == Limits(5, 600, 2)
    assert (tenant.scopes, tenant.models) == (("metrics",), ("tiny",))
    assert (tenant.weight, tenant.max_priority) == (3.0, 7)
    assert tenant.expires_s == (NOW + timedelta(days=1)).timestamp()


def test_a_name_has_one_live_key_and_its_next_holder_is_another_tenant(tmp_path):
    path = tmp_path / "keys.json"
    first, before = create(path, Grant("acme"), NOW)
    with pytest.raises(ConfigError) as caught:
        create(path, Grant("acme"), NOW)
    assert caught.value.code == "key-exists"
    revoke(path, "acme", NOW)
    assert read_keys(path) == ()
    second, after = create(path, Grant("acme"), NOW)
    assert first != second and before.id != after.id
    assert [key.digest for key in read_keys(path)] == [hash_key(second)]
    states = [record.state(NOW) for record in read_store(path).keys]
    assert states == ["revoked", "live"]


def test_an_expired_key_gives_its_name_free(tmp_path):
    path = tmp_path / "keys.json"
    create(path, Grant("acme", expires=NOW + timedelta(hours=1)), NOW)
    later = NOW + timedelta(hours=1)
    create(path, Grant("acme"), later)
    assert [record.state(later) for record in read_store(path).keys] == ["expired", "live"]


def test_an_unknown_name_gets_the_nearest(tmp_path):
    create(tmp_path / "keys.json", Grant("acme"), NOW)
    with pytest.raises(ConfigError) as caught:
        revoke(tmp_path / "keys.json", "acne", NOW)
    assert caught.value.code == "key-not-found" and "'acme'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "grant",
    [
        Grant("Acme"),
        Grant("../acme"),
        Grant("a" * 64),
        Grant("a", scopes=("admin",)),
        Grant("a", requests_per_minute=0),
        Grant("a", weight=0.0),
        Grant("a", weight=float("nan")),
        Grant("a", models=()),
        Grant("a", max_priority=101),
        Grant("a", expires=NOW),
    ],
)
def test_impossible_grants_are_refused_and_nothing_is_written(tmp_path, grant):
    with pytest.raises(ConfigError) as caught:
        create(tmp_path / "keys.json", grant, NOW)
    assert caught.value.code == "key-invalid"
    assert not (tmp_path / "keys.json").exists()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "keys-malformed"),
        ('{"version": 2}', "keys-malformed"),
        ('{"keys": [{"name": "a", "key": "sk-secret-secret"}]}', "keys-malformed"),
    ],
)
def test_a_malformed_store_is_told_without_what_it_holds(tmp_path, text, code):
    with pytest.raises(ConfigError) as caught:
        read_keys(write(tmp_path / "keys.json", text))
    assert caught.value.code == code and "sk-secret" not in str(caught.value)


def test_a_plain_list_is_not_written_to(tmp_path):
    path = write(tmp_path / "keys", "sk-test-0123456789abcdef\n")
    with pytest.raises(ConfigError) as caught:
        create(path, Grant("acme"), NOW)
    assert caught.value.code == "keys-plain"
    assert path.read_text() == "sk-test-0123456789abcdef\n"


@pytest.fixture
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_file, "LOOK_S", 0.0)


def name_of(ring: Keyring, key: str) -> str | None:
    asyncio.run(ring.refresh())
    tenant = ring.tenant(key)
    return None if tenant is None else tenant.name


def test_a_running_gateway_knows_new_keys_and_refuses_revoked_ones(tmp_path, look_always):
    path = tmp_path / "keys.json"
    old, _ = create(path, Grant("old"), NOW)
    ring = Keyring(read_keys(path), path)
    new, _ = create(path, Grant("new"), NOW)
    assert (name_of(ring, old), name_of(ring, new)) == ("old", "new")
    revoke(path, "old", NOW)
    assert (name_of(ring, old), name_of(ring, new)) == (None, "new")
    revoke(path, "new", NOW)
    assert name_of(ring, new) is None and not ring.is_open, "closed to all, not open to all"


def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_were(tmp_path, look_always, caplog):
    path = tmp_path / "keys.json"
    key, _ = create(path, Grant("acme"), NOW)
    ring = Keyring(read_keys(path), path)
    assert name_of(ring, key) == "acme"
    for spoil in (lambda: path.chmod(0o644), lambda: write(path, "{"), path.unlink):
        caplog.clear()
        spoil()
        assert name_of(ring, key) == "acme" and name_of(ring, key) == "acme"
        assert len(caplog.records) == 1 and "stay as they were" in caplog.text
        assert key not in caplog.text
    create(path, Grant("other"), NOW)
    assert name_of(ring, key) is None


def test_the_file_is_looked_at_once_in_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(keyring_file, "LOOK_S", 60.0)
    path = tmp_path / "keys.json"
    key, _ = create(path, Grant("acme"), NOW)
    ring = Keyring((), path)
    assert name_of(ring, key) == "acme"
    os.unlink(path)
    later, _ = create(path, Grant("later"), NOW)
    assert name_of(ring, later) is None, "before the time is over it is not read again"


def test_a_secret_that_root_has_mounted_for_the_group_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "keys", "sk-test-0123456789abcdef\n", 0o440)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)  # its own file, which it could close to the group
    assert caught.value.code == "keys-exposed"
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert len(read_keys(path)) == 1
    for mode in (0o444, 0o460, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError):
            read_keys(path)
