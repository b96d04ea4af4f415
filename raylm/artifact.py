"""Artifact: an immutable folder with a manifest; the only thing that stages hand over.

    <store>/<kind>/<name>-<digest12>/
        manifest.json      written last, atomically; without it the folder does not count
        ...                the files it lists, with size and SHA-256

The digest is of content alone (kind, and the path, size and hash of every file): timings,
hosts and logs never enter it, so equal content has one address.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from raylm.errors import ArtifactError, HostError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
Kind = Literal["dataset", "model", "report"]
KINDS: tuple[Kind, ...] = ("dataset", "model", "report")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact; `path` is relative, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is, what it was made from, and what was measured of it."""

    kind: Kind
    name: str
    digest: str
    files: tuple[FileEntry, ...]
    parents: tuple[str, ...] = ()
    """Digests of the artifacts that this one was made from."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config section of the stage."""
    config_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact on this machine."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hex."""
        return self.manifest.digest

    @property
    def kind(self) -> Kind:
        """dataset, model or report."""
        return self.manifest.kind

    @property
    def ref(self) -> str:
        """`kind/name-digest12`, which every command accepts."""
        return f"{self.kind}/{self.manifest.name}-{self.digest[:12]}"

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(f.size_bytes for f in self.manifest.files)


def content_digest(kind: str, files: tuple[FileEntry, ...]) -> str:
    """SHA-256 over kind and the sorted file table."""
    table = [(f.path, f.size_bytes, f.sha256) for f in sorted(files, key=lambda f: f.path)]
    return hashlib.sha256(json.dumps([kind, table]).encode()).hexdigest()


def json_hash(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path) -> tuple[FileEntry, ...]:
    """The file table of a folder, sorted by path; the manifest itself is left out.

    Raises:
        ArtifactError: something that is not a plain file lies in it.
    """
    paths = sorted(p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{path} is not a plain file", code="artifact-odd-file")
    paths = [p for p in paths if p != folder / MANIFEST]
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(hash_file, paths))
    return tuple(
        FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, h)
        for p, h in zip(paths, hashes, strict=True)
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ArtifactError: it is missing, not JSON, or of a newer raylm.
    """
    file = folder / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} has no {MANIFEST}: it is not a complete artifact",
            code="artifact-missing",
            hint="run the stage again; half-written folders are never used",
        ) from error
    except ValueError as error:
        raise _no_manifest(file, error) from error
    return parse_manifest(text, file)


def parse_manifest(text: str, place: object) -> Manifest:
    """A manifest from its JSON text; `place` names it in errors.

    Raises:
        ArtifactError: it is no manifest, or one of a newer raylm.
    """
    try:
        raw = json.loads(text)
        if raw["schema_version"] > SCHEMA_VERSION:
            raise ArtifactError(
                f"{place} was written by a newer raylm (schema {raw['schema_version']})",
                code="artifact-newer",
                hint="upgrade raylm",
            )
        raw["files"] = tuple(FileEntry(**entry) for entry in raw["files"])
        raw["parents"] = tuple(raw["parents"])
        return Manifest(**raw)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_manifest(place, error) from error


def _no_manifest(place: object, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{place} is not a manifest: {error}", code="artifact-altered", hint=_REMAKE
    )


_REMAKE = "remove it (`raylm models rm`) and run the stage that makes it again"


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare the files' sizes with the manifest.

    Raises:
        ArtifactError: a file is missing or has another size; it is named.
    """
    for entry in manifest.files:
        try:
            size = (folder / entry.path).stat().st_size
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{folder / entry.path} is missing", code="artifact-altered", hint=_REMAKE
            ) from error
        if size != entry.size_bytes:
            raise ArtifactError(
                f"{folder / entry.path} has {size} bytes, its manifest says {entry.size_bytes}",
                code="artifact-altered",
                hint=_REMAKE,
            )


def verify(artifact: Artifact) -> None:
    """Hash every file again and compare with the manifest.

    Raises:
        ArtifactError: naming the first file that differs.
    """
    check_sizes(artifact.path, artifact.manifest)
    for entry in artifact.manifest.files:
        if hash_file(artifact.path / entry.path) != entry.sha256:
            raise ArtifactError(
                f"{artifact.path / entry.path} was altered: its hash is not the manifest's",
                code="artifact-altered",
                hint=_REMAKE,
            )
    if content_digest(artifact.kind, artifact.manifest.files) != artifact.digest:
        raise ArtifactError(
            f"{artifact.path / MANIFEST} was altered: its digest is not that of its files",
            code="artifact-altered",
            hint=_REMAKE,
        )


def write_atomic(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file so that readers see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with disk_errors(path.parent):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (renames) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a HostError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError(
                f"no space left on the disk of {place}",
                code="disk-full",
                hint="free some space, or set `store` to a folder on another disk; "
                "what was complete is kept and `raylm run` goes on from there",
            ) from error
        if error.errno in _FORBIDDEN:
            raise HostError(
                f"{place} cannot be written: {error.strerror}",
                code="disk-forbidden",
                hint="set `store` (or $RAYLM_STORE) to a folder that you may write to",
            ) from error
        raise
