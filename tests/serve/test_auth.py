"""API keys: closed by default, files that only their owner can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.config.serve import ServeConfig
from raylm.errors import ConfigError
from raylm.serve.auth import PUBLIC_PATHS, hash_key, keys_for, read_keys

KEY = "sk-test-0123456789abcdef"
OTHER = "sk-test-fedcba9876543210"


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
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
        {"x-api-key": KEY},
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


def test_two_authorization_headers_are_refused(serve_here):
    headers = [("authorization", f"Bearer {KEY}")] * 2
    assert serve_here(keys=(KEY,)).client.get("/v1/models", headers=headers).status_code == 401


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
    path = key_file(tmp_path, f"# team a\n{KEY}\n\n  {OTHER}  \n")
    assert read_keys(path) == (hash_key(KEY), hash_key(OTHER))


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
        read_keys(key_file(tmp_path, text, mode))
    assert caught.value.code == code
    assert KEY not in caught.value.message


def test_missing_key_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        keys_for(ServeConfig(api_keys="nowhere"), tmp_path)


def test_other_hosts_need_keys(tmp_path):
    assert keys_for(ServeConfig(), tmp_path) == ()
    with pytest.raises(ConfigError) as caught:
        keys_for(ServeConfig(host="0.0.0.0"), tmp_path)
    assert caught.value.code == "keys-needed" and "0600" in (caught.value.hint or "")
    key_file(tmp_path, KEY)
    config = ServeConfig(host="0.0.0.0", api_keys="keys")
    assert keys_for(config, tmp_path) == (hash_key(KEY),)
