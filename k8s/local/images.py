"""Images that the cluster cannot pull, made by buildah without a daemon and kept as OCI archives.

A folder below `images/` has the Containerfile; what it copies is prepared here: a C program, Go
programs, a Debian made by debootstrap. An archive is found again by the content it is made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from k8s.local import binaries
from k8s.local.binaries import KUBERAY, KUBERNETES
from k8s.local.command import run
from k8s.local.layout import cache
from k8s.local.node import PAUSE_IMAGE

_SOURCES = Path(__file__).parent / "images"
_BUILD_S = 600.0
_DEBOOTSTRAP_S = 1200.0
_OS_RELEASE = Path("/etc/os-release")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is made here.

    Attributes:
        folder: below `images/`.
        name: full name with tag; a short one would get a registry's prefix, and be pulled.
        prepare: puts what the Containerfile copies into the folder that it is given.
        made_from: what tells one content from another, besides the folder.
    """

    folder: str
    name: str
    prepare: Callable[[Path], None]
    made_from: Callable[[], str]


def cluster_images() -> list[Image]:
    """What a cluster needs to stand."""
    return [pause(), coredns(), operator()]


def pause() -> Image:
    """The first process of each pod."""

    def prepare(context: Path) -> None:
        source = str(context / "pause.c")
        run("gcc", "-static", "-Os", "-s", "-Wall", "-Werror", "-o", str(context / "pause"), source)

    return Image("pause", PAUSE_IMAGE, prepare, lambda: run("gcc", "-dumpfullversion"))


def coredns() -> Image:
    """The cluster's DNS."""
    version = binaries.version(KUBERNETES, "github.com/coredns/coredns")
    return _of_program("coredns", f"raylm.local/coredns:{version}", KUBERNETES)


def operator() -> Image:
    """KubeRay's operator."""
    version = binaries.version(KUBERAY)
    return _of_program("kuberay-operator", f"raylm.local/kuberay-operator:{version}", KUBERAY)


def base() -> Image:
    """The smallest Debian that installs packages, of this machine's release."""
    release = _release()

    def prepare(context: Path) -> None:
        root = context / "root"
        run("debootstrap", "--variant=minbase", release, root, timeout_s=_DEBOOTSTRAP_S)
        run(
            "tar", "-C", root, "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb",
            "--exclude=./var/lib/apt/lists/*_*", "-cf", context / "rootfs.tar", ".",
            timeout_s=_BUILD_S,
        )  # fmt: skip
        shutil.rmtree(root)

    return Image("base", f"raylm.local/debian:{release}", prepare, lambda: release)


def ensure(image: Image) -> Path:
    """Build what is not built yet; returns the OCI archive.

    Raises:
        HostError: the build failed, with buildah's last lines.
    """
    target = archive(image)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        context = Path(folder, "context")
        shutil.copytree(_SOURCES / image.folder, context)
        image.prepare(context)
        fresh = Path(folder, "image.tar")
        build(image.name, context, fresh)
        os.replace(fresh, target)
    return target


def archive(image: Image) -> Path:
    """Where the archive of this content is, or will be."""
    digest = hashlib.sha256(f"{image.name}\0{image.made_from()}".encode())
    for path in sorted((_SOURCES / image.folder).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    short = image.name.rpartition("/")[2].replace(":", "-")
    return cache() / "images" / f"{short}-{digest.hexdigest()[:12]}.oci.tar"


def build(name: str, context: Path, target: Path, *more: str) -> None:
    """Build an image from a folder with a Containerfile, into an OCI archive.

    Args:
        more: further options of `buildah bud`.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="buildah-") as storage:
        # A storage for this build alone: nothing is left, and builds do not meet.
        buildah = (
            "buildah", f"--root={storage}/root", f"--runroot={storage}/run",
            "--storage-driver=vfs",
        )  # fmt: skip
        run(
            *buildah, "bud", "--isolation=chroot", "--network=host", "--layers=false",
            f"--tag={name}", *more, context, timeout_s=_BUILD_S,
        )  # fmt: skip
        run(*buildah, "push", name, f"oci-archive:{target}:{name}", timeout_s=_BUILD_S)


def _of_program(program: str, name: str, made_by: binaries.Build) -> Image:
    def prepare(context: Path) -> None:
        shutil.copy(binaries.ensure(made_by) / program, context / program)

    return Image(program, name, prepare, lambda: binaries.folder(made_by).name)


def _release() -> str:
    lines = _OS_RELEASE.read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "stable").strip('"')
