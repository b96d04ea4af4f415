"""Images of a release: raylm's own, from its Dockerfile, and Redis, on the Debian made here.

Unlike those that a cluster needs to stand, these install packages, so their layers are kept in a
storage in the cache: a change of raylm's source builds what is above the packages alone. Their
tags say what they are made from: a pod never has another content than the one it names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from k8s.local import images
from k8s.local.command import COMMAND_S, run
from k8s.local.layout import cache

_REPOSITORY = Path(__file__).parents[2]
_SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "raylm")
_REDIS = Path(__file__).parent / "images" / "redis"
_TRUSTING = Path(__file__).parent / "images" / "trusted"
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_BUILD_S = 1800.0


@dataclass(frozen=True, slots=True)
class Archived:
    """An image in an OCI archive."""

    name: str
    archive: Path

    @property
    def repository(self) -> str:
        """Its name without the tag."""
        return self.name.rpartition(":")[0]

    @property
    def tag(self) -> str:
        """What follows the name."""
        return self.name.rpartition(":")[2]


def raylm(lock: str) -> Archived:
    """raylm's image, of the lock `requirements/LOCK.txt`; built if its sources are new.

    Raises:
        HostError: the build failed, with buildah's last lines.
    """
    files = [*_SOURCES, f"requirements/{lock}.txt"]
    name = f"raylm.local/raylm:{lock}-{_digest(_REPOSITORY, files)}"
    return _ensure(name, _REPOSITORY, "Dockerfile", f"--build-arg=LOCK={lock}")


def redis() -> Archived:
    """Debian's Redis."""
    return _ensure(f"raylm.local/redis:{_digest(_REDIS, ['.'])}", _REDIS, "Containerfile")


def _ensure(name: str, context: Path, file: str, *more: str) -> Archived:
    short = name.rpartition("/")[2].replace(":", "-")
    found = Archived(name, cache() / "images" / f"{short}.oci.tar")
    if found.archive.exists():
        return found
    _build(name, context, file, f"--build-arg=BASE={_trusting_base()}", *more)
    with tempfile.TemporaryDirectory(dir=found.archive.parent) as folder:
        fresh = Path(folder, "image.tar")
        _buildah(
            "push", "--disable-compression", name, f"oci-archive:{fresh}:{name}", timeout_s=_BUILD_S
        )
        os.replace(fresh, found.archive)
    return found


def _trusting_base() -> str:
    """The base with the certificates that this machine trusts beside Debian's own.

    Behind a proxy that has one, builds would not get their packages otherwise.
    """
    base = images.ensure(images.base())
    name = f"raylm.local/trusting-debian:{_base_digest()}"
    if _has(name):
        return name
    pulled = _buildah("pull", "--quiet", f"oci-archive:{base}", timeout_s=_BUILD_S).strip()
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "certificates")
        own.mkdir()
        for path in _certificates():
            shutil.copy(path, own)
        _build(name, Path(folder), str(_TRUSTING / "Containerfile"), f"--build-arg=BASE={pulled}")
    return name


def _base_digest() -> str:
    digest = hashlib.sha256(images.archive(images.base()).name.encode())
    for path in _certificates():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _certificates() -> list[Path]:
    return sorted(_CERTIFICATES.glob("**/*.crt"))


def _build(name: str, context: Path, file: str, *more: str) -> None:
    _buildah(
        "bud", "--isolation=chroot", "--network=host", "--layers", "--pull-never",
        "--format=docker", f"--tag={name}", *more, f"--file={context / file}", str(context),
        timeout_s=_BUILD_S,
    )  # fmt: skip


def _has(name: str) -> bool:
    return bool(_buildah("images", "--quiet", "--filter", f"reference={name}").strip())


def _buildah(*words: str, timeout_s: float = COMMAND_S) -> str:
    root = cache() / "containers"
    return run(
        "buildah", f"--root={root / 'root'}", f"--runroot={root / 'run'}", *words,
        timeout_s=timeout_s,
    )  # fmt: skip


def _digest(root: Path, names: list[str]) -> str:
    digest = hashlib.sha256(_base_digest().encode())
    for path in sorted(path for name in names for path in _files(root / name)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for found in path.rglob("*"):
        if found.is_file() and "__pycache__" not in found.parts:
            yield found
