"""API keys: closed by default, files that only their owner can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.config.serve import ServeConfig
from raylm.errors import ConfigError
from raylm.serve.auth import PUBLIC_PATHS, key_file, keys_for
from raylm.serve.keys import hash_key, read_keys

KEY = "sk-test-0123456789abcdef"
OTHER = "sk-test-fedcba9876543210"


def write_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def routes(served) -> list[tuple[str, str]]:
    found = [(m, r.path) for r in served.client.app.routes for m in r.methods]
    assert len(found) >= 7
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer  {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": "Bearer sk-test-0123456789abcdeF"},
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": f"Bearer\t{KEY}"},
        {"authorization": f" Bearer {KEY}"},
        {"authorization": f"Bearer{KEY}"},
        {"authorization": f"Bearer {KEY},"},
        {"authorization": f"Basic x, Bearer {KEY}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {hash_key(KEY).hex()}"},
        {"x-api-key": KEY},
        {"proxy-authorization": f"Bearer {KEY}"},
        {"cookie": f"authorization=Bearer {KEY}"},
    ],
)
def test_every_route_but_two_refuses_without_a_known_key(serve_here, headers):
    served = serve_here(keys=(KEY,))
    for method, path in [*routes(served), ("GET", "/docs"), ("POST", "/nowhere")]:
        answer = served.client.request(method, path + f"?api_key={KEY}", headers=headers)
        if path in PUBLIC_PATHS:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401, path
            if method != "HEAD":
                assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("first", [f"Bearer {KEY}", f"Bearer {OTHER}", "Basic x", ""])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_authorization_headers_are_refused_everywhere(serve_here, first, swapped):
    served = serve_here(keys=(KEY,))
    headers = [("authorization", first), ("Authorization", f"Bearer {KEY}")]
    for method, path in routes(served):
        answer = served.client.request(method, path, headers=headers[:: -1 if swapped else 1])
        assert answer.status_code == (200 if path in PUBLIC_PATHS else 401), path


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", [KEY, OTHER])
def test_any_known_key_passes(serve_here, scheme, key):
    client = serve_here(keys=(KEY, OTHER)).client
    answer = client.get("/v1/models", headers={"authorization": f"{scheme} {key}"})
    assert answer.status_code == 200


def test_public_paths_are_compared_exactly(serve_here):
    client = serve_here(keys=(KEY,)).client
    for path in ("/healthz/", "//healthz", "/healthz/../v1/models", "/HEALTHZ", "/healthz%00"):
        assert client.get(path).status_code == 401


def test_refusals_are_counted(serve_here):
    served = serve_here(keys=(KEY,))
    served.client.get("/v1/models")
    metrics = served.client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    assert 'raylm_auth_failures_total{gateway="g1"} 1.0' in metrics


def test_key_file_gives_hashes_only(tmp_path):
    path = write_file(tmp_path, f"# team a\n{KEY}\n\n  {OTHER}  \n")
    keys = read_keys(path)
    assert [key.digest for key in keys] == [hash_key(KEY), hash_key(OTHER)]
    assert [key.tenant.name for key in keys] == ["key-1", "key-2"]
    assert KEY not in repr(keys) and not any(key.tenant.limits.any for key in keys)


def test_a_tenant_of_a_plain_file_is_known_by_its_key_not_by_its_line(tmp_path):
    before = read_keys(write_file(tmp_path, f"{KEY}\n{OTHER}\n"))
    after = read_keys(write_file(tmp_path, f"{OTHER}\n{KEY}\n"))
    assert [key.tenant.id for key in after] == [key.tenant.id for key in reversed(before)]


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [
        (KEY, 0o644, "keys-exposed"),
        (KEY, 0o660, "keys-exposed"),
        (KEY, 0o604, "keys-exposed"),
        ("", 0o600, "keys-empty"),
        ("# nothing\n\n", 0o600, "keys-empty"),
        ("short", 0o600, "keys-weak"),
        ("has a space in the middle", 0o600, "keys-weak"),
        ("ключключключключключ", 0o600, "keys-weak"),
    ],
)
def test_unusable_key_files_are_refused(tmp_path, text, mode, code):
    with pytest.raises(ConfigError) as caught:
        read_keys(write_file(tmp_path, text, mode))
    assert caught.value.code == code
    assert KEY not in caught.value.message


def test_missing_key_file(tmp_path):
    config = ServeConfig(api_keys="nowhere")
    with pytest.raises(ConfigError, match="cannot read"):
        keys_for(config, key_file(config, tmp_path, None))


def test_other_hosts_need_keys(tmp_path):
    assert keys_for(ServeConfig(), None) == ()
    with pytest.raises(ConfigError) as caught:
        keys_for(ServeConfig(host="0.0.0.0"), None)
    assert caught.value.code == "keys-needed" and "0600" in (caught.value.hint or "")
    write_file(tmp_path, KEY)
    config = ServeConfig(host="0.0.0.0", api_keys="keys")
    path = key_file(config, tmp_path, None)
    assert [key.digest for key in keys_for(config, path)] == [hash_key(KEY)]


def test_the_stores_keys_are_used_where_no_file_is_named(tmp_path):
    in_store = tmp_path / "keys.json"
    assert key_file(ServeConfig(), tmp_path, in_store) is None
    in_store.write_text("{}")
    in_store.chmod(0o600)
    assert key_file(ServeConfig(), tmp_path, in_store) == in_store
    named = ServeConfig(api_keys="mine")
    assert key_file(named, tmp_path, in_store) == tmp_path / "mine"
    with pytest.raises(ConfigError) as caught:
        keys_for(ServeConfig(), in_store)
    assert caught.value.code == "keys-empty"
