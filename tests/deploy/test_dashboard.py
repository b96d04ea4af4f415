from pathlib import Path

import pytest

from raylm.deploy.dashboard import Dashboard, dashboard_url, find_dashboard, find_token
from raylm.errors import ConfigError, HostError
from raylm.store import Store


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://10.0.0.5:8265/", "http://10.0.0.5:8265"),
        ("10.0.0.5:9000", "http://10.0.0.5:9000"),
        ("head.example", "http://head.example:8265"),
        ("localhost:8265", "http://127.0.0.1:8265"),
        ("https://ray.example/", "https://ray.example:443"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_what_people_write_becomes_one_form(given: str, url: str) -> None:
    assert dashboard_url(given) == url


@pytest.mark.parametrize("given", ["ray://h:10001", "", "http://", "h:port", "http://me:pw@h:1"])
def test_other_addresses_are_refused_with_an_example(given: str) -> None:
    with pytest.raises(ConfigError, match="no address of a Ray dashboard") as error:
        dashboard_url(given)
    assert "--address http://10.0.0.5:8265" in (error.value.hint or "")


def test_tokens_are_found_in_rays_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "token"
    file.write_text("from-file\n")
    both = {"RAY_AUTH_TOKEN": "direct", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert find_token(both) == "direct"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(file)}) == "from-file"
    assert find_token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("by-default")
    assert find_token({}) == "by-default"
    with pytest.raises(HostError) as error:
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})
    assert error.value.code == "cluster-token-missing"


def test_without_a_cluster_the_remedy_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(HostError, match="no cluster is up") as error:
        find_dashboard(store)
    assert error.value.code == "cluster-not-up"
    assert "raylm up" in (error.value.hint or "")
    with pytest.raises(HostError) as unreachable:
        find_dashboard(store, "127.0.0.1:9")
    assert unreachable.value.code == "cluster-unreachable"


def test_a_token_is_not_in_what_is_printed_of_a_dashboard() -> None:
    assert "secret" not in repr(Dashboard("http://h:1", "secret", is_ours=False))
