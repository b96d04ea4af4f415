from pathlib import Path
from typing import Any

import pytest
import yaml

from raylm.deploy.kubernetes.client import Client, failure, tool
from raylm.deploy.kubernetes.preflight import (
    check_kubernetes,
    check_secret,
    needed_claims,
    needed_secrets,
)
from raylm.errors import ConfigError, HostError

HELM = Path(__file__).parents[3] / "helm"


def version(major: str, minor: str) -> dict[str, Any]:
    text = f"v{major}.{minor}.3"
    return {"serverVersion": {"major": major, "minor": minor, "gitVersion": text}}


@pytest.mark.parametrize("minor", ["30", "36", "31+"])
def test_kubernetes_is_new_enough(minor: str) -> None:
    check_kubernetes(version("1", minor))


@pytest.mark.parametrize(
    ("found", "code"),
    [(version("1", "29"), "kubernetes-too-old"), ({}, "kubernetes-unreachable")],
)
def test_an_old_or_silent_kubernetes_is_refused(found: dict[str, Any], code: str) -> None:
    with pytest.raises(HostError) as caught:
        check_kubernetes(found)
    assert caught.value.code == code


def values(chart: str, name: str) -> dict[str, Any]:
    """As Helm puts them together, one level deep where that suffices."""
    base = yaml.safe_load((HELM / chart / "values.yaml").read_text())
    given = yaml.safe_load((HELM / chart / f"ci/{name}-values.yaml").read_text())
    for key, value in given.items():
        merge = isinstance(value, dict) and isinstance(base[key], dict)
        base[key] = {**base[key], **value} if merge else value
    return dict(base)


def test_secrets_and_claims_that_a_release_needs_are_known() -> None:
    full = values("raylm", "full")
    assert list(needed_secrets(full)) == [
        ("raylm-keys", ("keys.json", "client-key"), "api_keys.existing_secret"),
        ("ray-token", ("auth_token",), "ray_auth.existing_secret"),
        ("redis", ("password",), "fault_tolerance.existing_secret"),
        ("registry", (), "image.pull_secrets"),
    ]
    assert list(needed_claims(full)) == [("models", "store.claim"), ("cache", "cache_claim")]
    queue = values("raylm-train", "queue")
    assert list(needed_secrets(queue)) == []
    assert list(needed_claims(queue)) == [("models", "store.claim"), ("corpus", "data_claim")]
    stored = values("raylm", "object-store")
    assert ("s3", (), "store.credentials_secret") in list(needed_secrets(stored))


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (None, "there is no secret 'k'"),
        ({"data": {"a": "x"}}, "has no entry 'b'"),
        ({}, "entry 'a'"),
    ],
)
def test_a_secret_that_lacks_something_is_named_with_it(secret: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_secret(secret, "k", ("a", "b"), "api_keys.existing_secret")
    assert caught.value.code == "secret-missing"


def test_a_secret_with_its_entries_passes() -> None:
    check_secret({"data": {"a": "", "b": ""}}, "k", ("a", "b"), "key")


@pytest.mark.parametrize(
    ("stderr", "code", "said"),
    [
        (
            'level=INFO msg="found symbolic link"\nError: execution error at '
            "(raylm/templates/rayservice.yaml:1:4): models is empty: name one\n\nUse --debug flag",
            "chart-refused",
            "models is empty: name one",
        ),
        (
            "Error: values don't meet the specifications of the schema(s)\nraylm:\n- at '/serve': "
            "additional properties 'x' not allowed",
            "chart-refused",
            "additional properties 'x' not allowed",
        ),
        (
            "E1128 15:00:00 memcache.go:265] x\nThe connection to the server localhost:8080 was "
            "refused - did you specify the right host or port?",
            "kubernetes-unreachable",
            "localhost:8080",
        ),
        (
            'Error from server (Forbidden): pods is forbidden: User "u" cannot list',
            "kubernetes-forbidden",
            "cannot list",
        ),
        ("", "kubectl-failed", "kubectl failed"),
    ],
)
def test_what_tools_say_becomes_one_line(stderr: str, code: str, said: str) -> None:
    error = failure("kubectl", stderr)
    assert error.code == code
    assert said in error.message and "\n" not in error.message
    assert "level=" not in error.message and "memcache" not in error.message


def test_a_missing_tool_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("helm", "kubectl"):
        with pytest.raises(HostError, match=f"{name} is not installed") as caught:
            tool(name)
        assert caught.value.code == "tool-missing" and caught.value.exit_code == 3


def test_a_cluster_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    try:
        tool("kubectl")
    except HostError:
        pytest.skip("kubectl is not installed")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(HostError) as caught:
        Client().get("pods")
    assert caught.value.code == "kubernetes-unreachable"


def test_an_unknown_context_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        tool("kubectl")
    except HostError:
        pytest.skip("kubectl is not installed")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(HostError, match="nowhere"):
        Client(context="nowhere").get("pods")
