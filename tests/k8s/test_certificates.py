import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from k8s.local import certificates
from k8s.local.certificates import ADMIN, API_SERVER, PROXY
from k8s.local.plan import API_URL, WORKERS

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "keys"
    certificates.make_all(folder)
    return folder


def _openssl(*words: str | Path) -> str:
    return subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, check=True, timeout=30
    ).stdout


def test_everyone_is_signed_by_the_authority_and_files_are_private(keys: Path) -> None:
    for identity in certificates.everyone():
        _openssl("verify", "-CAfile", keys / "ca.crt", keys / f"{identity.file}.crt")
        assert (keys / f"{identity.file}.key").stat().st_mode & 0o077 == 0
    assert keys.stat().st_mode & 0o077 == 0
    assert not [*keys.glob("*.csr"), *keys.glob("*.ext")]


def test_another_authority_is_not_believed(keys: Path, tmp_path: Path) -> None:
    certificates.make_all(tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        _openssl("verify", "-CAfile", tmp_path / "ca.crt", keys / "admin.crt")


def test_subjects_are_the_users_and_groups_that_rbac_knows(keys: Path) -> None:
    def subject(file: str) -> str:
        return _openssl("x509", "-in", keys / f"{file}.crt", "-noout", "-subject")

    assert "O = system:masters, CN = raylm-admin" in subject(ADMIN.file)
    assert "O = system:nodes, CN = system:node:node-1" in subject("node-1")
    assert "CN = system:kube-proxy" in subject(PROXY.file)
    assert "O = " not in subject(PROXY.file)


def test_servers_are_named_and_clients_cannot_serve(keys: Path) -> None:
    def text(file: str) -> str:
        return _openssl("x509", "-in", keys / f"{file}.crt", "-noout", "-text")

    server = text(API_SERVER.file)
    assert "IP Address:10.231.0.1" in server and "IP Address:10.233.0.1" in server
    assert "DNS:kubernetes.default.svc" in server
    assert f"IP Address:{WORKERS[1].address}" in text("node-2")
    assert "TLS Web Server Authentication" not in text(ADMIN.file)


def test_a_kubeconfig_holds_all_that_a_client_needs(keys: Path) -> None:
    config = json.loads(certificates.kubeconfig(keys, ADMIN))
    cluster = config["clusters"][0]["cluster"]
    assert cluster["server"] == API_URL
    data = base64.b64decode(cluster["certificate-authority-data"])
    assert data == (keys / "ca.crt").read_bytes()
    user = config["users"][0]["user"]
    assert base64.b64decode(user["client-key-data"]) == (keys / "admin.key").read_bytes()
    assert config["current-context"] == config["contexts"][0]["name"]
