"""Images: which ones manifests need, which ones an archive has, and how a node takes them in."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylm.errors import ConfigError, HostError

LOADERS: dict[str, tuple[str, ...]] = {
    "ctr": ("ctr", "--namespace", "k8s.io", "images", "import"),
    "k3s": ("k3s", "ctr", "--namespace", "k8s.io", "images", "import"),
    "nerdctl": ("nerdctl", "--namespace", "k8s.io", "load", "--input"),
    "docker": ("docker", "load", "--input"),
    "kind": ("kind", "load", "image-archive"),
    "minikube": ("minikube", "image", "load"),
}
"""Commands that take an archive into what runs a cluster's containers; the file comes last."""
LOAD_S = 1800.0
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def needed(manifests: Any) -> set[str]:
    """Full names of the images of every container in manifests. Pure."""
    return {full_name(image) for image in _images(manifests)}


def _images(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        # A container has a name beside its image; other objects may have an `image` too.
        if isinstance(value.get("image"), str) and "name" in value:
            yield value["image"]
        for inner in value.values():
            yield from _images(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _images(inner)


def full_name(name: str) -> str:
    """A name as containerd keeps it: `redis:7.4` is `docker.io/library/redis:7.4`. Pure."""
    host, slash, rest = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in host or ":" in host or host == "localhost"):
        name = f"docker.io/{name}"
    elif host == "docker.io" and "/" not in rest:
        name = f"docker.io/library/{rest}"
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"


def archive_names(path: Path) -> list[str]:
    """Full names of the images in an OCI archive or one of `docker save`.

    Raises:
        ConfigError: it is neither, or its images have no names.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            names = _oci_names(archive) or _docker_names(archive)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no archive of an image: {error}", code="image-archive", hint=_HINT
        ) from error
    if not names:
        raise ConfigError(
            f"{path}: its image has no name, so no pod would find it",
            code="image-archive",
            hint=_HINT,
        )
    return [full_name(name) for name in names]


_HINT = "make it by `docker save -o FILE NAME` or `buildah push NAME oci-archive:FILE:NAME`"


def _oci_names(archive: tarfile.TarFile) -> list[str]:
    index = _json(archive, "index.json")
    entries = [] if index is None else index["manifests"]
    found = [entry.get("annotations") or {} for entry in entries]
    names = [next((a[key] for key in _NAMES if key in a), "") for a in found]
    # A tag alone is no name.
    return [name for name in names if "/" in name or ":" in name]


def _docker_names(archive: tarfile.TarFile) -> list[str]:
    images = _json(archive, "manifest.json")
    return [] if images is None else [tag for image in images for tag in image["RepoTags"] or []]


def _json(archive: tarfile.TarFile, name: str) -> Any:
    try:
        file = archive.extractfile(name)
    except KeyError:
        return None
    return None if file is None else json.load(file)


def take_in(archive: Path, loader: str) -> None:
    """Give an archive to what runs the containers of this node or cluster.

    Raises:
        HostError: the loader is not here, or refuses.
    """
    command = LOADERS[loader]
    if shutil.which(command[0]) is None:
        raise HostError(
            f"{command[0]} is not installed",
            code="tool-missing",
            hint=f"--into is one of {', '.join(LOADERS)}; docs/air-gapped.md has the registry",
        )
    try:
        done = subprocess.run(
            [*command, str(archive)], capture_output=True, text=True, timeout=LOAD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise HostError(
            f"{loader} did not take {archive.name} within {LOAD_S:.0f} s", code="image-refused"
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise HostError(f"{loader} refuses {archive.name}: {last}", code="image-refused")
