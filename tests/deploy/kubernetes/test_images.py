"""Names of images: what manifests need, what archives have, and a containerd that takes one in."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.deploy.kubernetes.images import archive_names, full_name, needed, take_in
from raylm.errors import ConfigError, HostError
from tests.deploy.kubernetes.archives import docker_archive, oci_archive


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("redis:7.4", "docker.io/library/redis:7.4"),
        ("raylm", "docker.io/library/raylm:latest"),
        ("acme/raylm:1", "docker.io/acme/raylm:1"),
        ("docker.io/redis:7", "docker.io/library/redis:7"),
        ("quay.io/kuberay/operator:v1.6.1", "quay.io/kuberay/operator:v1.6.1"),
        ("localhost:5000/raylm", "localhost:5000/raylm:latest"),
        ("raylm@sha256:ab", "docker.io/library/raylm@sha256:ab"),
    ],
)
def test_names_are_those_of_containerd(name: str, full: str) -> None:
    assert full_name(name) == full


def test_the_images_of_all_containers_are_needed_and_nothing_else_is() -> None:
    pod = {
        "initContainers": [{"name": "fetch", "image": "raylm:1"}],
        "containers": [{"name": "serve", "image": "raylm:1"}, {"name": "r", "image": "redis:7.4"}],
    }
    manifests = [{"spec": {"template": {"spec": pod}}}, {"data": {"image": "a photograph"}}, None]
    assert needed(manifests) == {"docker.io/library/raylm:1", "docker.io/library/redis:7.4"}


def test_an_archive_says_which_images_it_has(tmp_path: Path) -> None:
    oci = oci_archive(tmp_path / "oci.tar", "raylm.local/raylm:dev")
    assert archive_names(oci) == ["raylm.local/raylm:dev"]
    saved = docker_archive(tmp_path / "saved.tar", "redis:7.4", "redis:7")
    assert archive_names(saved) == ["docker.io/library/redis:7.4", "docker.io/library/redis:7"]


def test_what_is_no_archive_or_has_no_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no archive" * 100)
    with pytest.raises(ConfigError, match="no archive of an image"):
        archive_names(tmp_path / "text.tar")
    with pytest.raises(ConfigError, match="has no name"):
        archive_names(oci_archive(tmp_path / "dev.tar", "dev"))
    with pytest.raises(ConfigError, match="has no name"):
        archive_names(oci_archive(tmp_path / "none.tar", None))


@pytest.fixture
def containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A containerd of this test's own, found by ctr."""
    if os.geteuid() != 0 or not (shutil.which("containerd") and shutil.which("ctr")):
        pytest.skip("needs root, containerd and ctr")
    socket = tmp_path / "c.sock"
    (tmp_path / "config.toml").write_text(
        f"version = 2\nroot = '{tmp_path}/root'\nstate = '{tmp_path}/state'\n"
        "disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n"
        f"[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{tmp_path}/t.sock'\n"
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "--config", str(tmp_path / "config.toml")], stdout=log, stderr=log
        )
    monkeypatch.setenv("CONTAINERD_ADDRESS", str(socket))
    # Where its files lie is an overlay already, on which another overlay cannot be.
    monkeypatch.setenv("CONTAINERD_SNAPSHOTTER", "native")
    try:
        deadline_s = time.monotonic() + 60
        while subprocess.run(["ctr", "version"], capture_output=True, check=False).returncode:
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield tmp_path
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("kind", [oci_archive, docker_archive])
def test_a_node_has_the_images_of_an_archive_it_took_in(containerd: Path, kind: object) -> None:
    assert callable(kind)
    archive = kind(containerd / "hello.tar", "quay.io/acme/hello:1")
    take_in(archive, "ctr")
    command = ["ctr", "--namespace", "k8s.io", "images", "ls", "-q"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert archive_names(archive) == ["quay.io/acme/hello:1"]
    assert "quay.io/acme/hello:1" in listed


def test_a_loader_that_refuses_or_is_missing_says_so(
    containerd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (containerd / "bad.tar").write_text("no archive" * 100)
    with pytest.raises(HostError, match=r"ctr refuses bad\.tar: "):
        take_in(containerd / "bad.tar", "ctr")
    monkeypatch.setenv("PATH", str(containerd))
    with pytest.raises(HostError, match="nerdctl is not installed"):
        take_in(containerd / "bad.tar", "nerdctl")
