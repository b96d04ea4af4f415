"""Store: where artifacts, runs and the index of finished stages lie.

    <store>/dataset|model|report/<name>-<digest12>/   artifacts
    <store>/index/<stage key>.json                    which artifact a stage's key has
    <store>/runs/<run id>/                            what happened while stages worked
    <store>/engine/<model digest>/<key>/              files derived for engines
    <store>/locks, verified, cluster                  this machine's own

Every change is a rename of something complete; several processes may share a store.

A store given by URL keeps artifacts and index in a bucket, which several machines share. Its
folder here is then a cache: an artifact is downloaded once, verified, and mapped from it; what
was committed while the bucket could not be reached is uploaded the next time it is asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import raylm
from raylm.artifact import (
    KINDS,
    MANIFEST,
    Artifact,
    Kind,
    Manifest,
    check_sizes,
    content_digest,
    disk_errors,
    hash_tree,
    json_hash,
    read_manifest,
    sync_folder,
    sync_tree,
    verify,
    write_atomic,
)
from raylm.bucket import Bucket, is_url
from raylm.errors import ArtifactError, nearest
from raylm.processes import created_here, is_same

_LIBRARIES = ("ray", "torch", "deepspeed", "transformers", "openvino", "compressed-tensors")


def default_place() -> str:
    """$RAYLM_STORE, or ~/.raylm."""
    return os.environ.get("RAYLM_STORE") or "~/.raylm"


def local_root(place: str) -> Path:
    """The folder on this machine of a store: itself, or a bucket's cache."""
    if not is_url(place):
        return Path(place).expanduser().absolute()
    place = place.partition("?")[0].rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", place)
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    return Path("~/.raylm/buckets").expanduser().absolute() / f"{name}-{digest}"


class Draft:
    """An artifact in the making: a folder that counts only after `commit`."""

    def __init__(self, store: Store, kind: Kind, name: str, path: Path) -> None:
        self.path = path
        self._store, self._kind, self._name = store, kind, name

    def commit(
        self,
        *,
        parents: tuple[Artifact, ...] = (),
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Hash, write the manifest last, and move the folder to its address.

        Equal content that is already there wins, and this folder is dropped.
        """
        with disk_errors(self._store.root):
            files = hash_tree(self.path)
            digest = content_digest(self._kind, files)
            manifest = Manifest(
                kind=self._kind,
                name=self._name,
                digest=digest,
                files=files,
                parents=tuple(p.digest for p in parents),
                config=dict(config or {}),
                config_hash=json_hash(config or {}),
                versions=library_versions(),
                git_revision=git_revision(),
                metrics=dict(metrics or {}),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            write_atomic(self.path / MANIFEST, manifest.to_json())
            sync_tree(self.path)
            target = self._store.root / self._kind / f"{self._name}-{digest[:12]}"
            with self._store.lock(f"commit-{digest[:12]}"):
                if target.exists():
                    if _complete(target, digest):
                        shutil.rmtree(self.path)
                        return self._store.open(target)
                    shutil.rmtree(target)
                self.path.rename(target)
                sync_folder(target.parent)
            artifact = Artifact(target, manifest)
            self._store.mark_verified(artifact)
            return artifact


class Store:
    """A folder of artifacts and runs, or a bucket with a folder here as its cache."""

    def __init__(self, place: str | Path | None = None) -> None:
        self.place = str(place or default_place())
        self.root = local_root(self.place)
        with disk_errors(self.root):
            for folder in (*KINDS, "index", "runs", "engine", "locks", "verified", "drafts"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._sweep_drafts()

    @cached_property
    def bucket(self) -> Bucket | None:
        """What several machines share, where the store is one; None for a folder."""
        # Late: what only needs the folder here (`raylm down`) works without a network.
        return Bucket(self.place) if is_url(self.place) else None

    # Making ------------------------------------------------------------------------------

    @contextmanager
    def draft(self, kind: Kind, name: str) -> Iterator[Draft]:
        """A new folder to fill and commit; removed if it is not committed."""
        with disk_errors(self.root), self._draft_folder() as path:
            yield Draft(self, kind, name, path)

    @contextmanager
    def _draft_folder(self) -> Iterator[Path]:
        """A new empty folder that a sweep removes if this process is killed."""
        owner = f"{socket.gethostname()}~{os.getpid()}~{int(created_here())}"
        path = self.root / "drafts" / f"{owner}~{os.urandom(4).hex()}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _sweep_drafts(self) -> None:
        """Remove what a killed process of this machine left half-made."""
        for path in (self.root / "drafts").iterdir():
            host, _, rest = path.name.partition("~")
            pid, _, rest = rest.partition("~")
            if host == socket.gethostname() and not is_same(int(pid), int(rest.split("~")[0])):
                shutil.rmtree(path, ignore_errors=True)

    def remember(self, stage_key: str, artifact: Artifact) -> None:
        """Record that the stage with this key has this result."""
        # Here first: what cannot be uploaded now is not lost.
        entry = json.dumps({"ref": artifact.ref, "digest": artifact.digest}) + "\n"
        write_atomic(self._index(stage_key), entry)
        if self.bucket is not None:
            self.bucket.push(artifact)
            self.bucket.remember(stage_key, entry)
            self._index(stage_key).unlink(missing_ok=True)

    # Finding -----------------------------------------------------------------------------

    def find(self, stage_key: str) -> Artifact | None:
        """The result of the stage with this key, if it is there and sound."""
        bucket = self.bucket
        try:
            ref = bucket.recall(stage_key) if bucket is not None else None
            is_pending = ref is None
            if is_pending:
                ref = json.loads(self._index(stage_key).read_text(encoding="utf-8"))["ref"]
            artifact = self.open(self.root / str(ref))
        except (FileNotFoundError, ValueError, KeyError):
            return None
        except ArtifactError as error:
            if error.code == "artifact-missing":
                return None
            raise
        if bucket is not None and is_pending:
            self.remember(stage_key, artifact)
        elif bucket is not None:
            # Another machine may have removed it, and here it is needed again.
            bucket.push(artifact)
        return artifact

    def _index(self, stage_key: str) -> Path:
        return self.root / "index" / f"{stage_key}.json"

    def open(self, path: Path) -> Artifact:
        """Open an artifact: manifest and sizes always, hashes once per machine.

        One that lies in the bucket alone is downloaded first.

        Raises:
            ArtifactError: it is incomplete or altered.
        """
        if self.bucket is not None and not (path / MANIFEST).exists():
            self._download(self.bucket, path)
        artifact = Artifact(path, read_manifest(path))
        check_sizes(path, artifact.manifest)
        stamp = self.root / "verified" / socket.gethostname() / artifact.digest
        if not stamp.exists() or stamp.read_text() != _times(artifact):
            verify(artifact)
            self.mark_verified(artifact)
        return artifact

    def _download(self, bucket: Bucket, path: Path) -> None:
        ref = path.relative_to(self.root).as_posix()
        with self.lock(f"download-{path.name}"), disk_errors(self.root):
            if (path / MANIFEST).exists():
                return
            with self._draft_folder() as folder:
                bucket.pull(ref, folder)
                verify(Artifact(folder, read_manifest(folder)))
                sync_tree(folder)
                shutil.rmtree(path, ignore_errors=True)
                folder.rename(path)
                sync_folder(path.parent)

    def take(self, folder: Path) -> Artifact:
        """Copy an artifact of elsewhere to its address here; one that is there is left as it is.

        Raises:
            ArtifactError: it is incomplete or altered.
            HostError: the disk is full.
        """
        found = Artifact(folder, read_manifest(folder))
        verify(found)
        target = self.root / found.ref
        with self.lock(f"commit-{found.digest[:12]}"), disk_errors(self.root):
            if not (target.exists() and _complete(target, found.digest)):
                with self._draft_folder() as draft:
                    shutil.copytree(folder, draft, dirs_exist_ok=True)
                    verify(Artifact(draft, found.manifest))
                    sync_tree(draft)
                    shutil.rmtree(target, ignore_errors=True)
                    draft.rename(target)
                    sync_folder(target.parent)
        taken = self.open(target)
        if self.bucket is not None:
            self.bucket.push(taken)
        return taken

    def mark_verified(self, artifact: Artifact) -> None:
        """Note that this machine has hashed these very files (size and time of each)."""
        folder = self.root / "verified" / socket.gethostname()
        folder.mkdir(exist_ok=True)
        write_atomic(folder / artifact.digest, _times(artifact))

    def list(self, kind: Kind | None = None) -> list[Artifact]:
        """All complete artifacts, oldest first, sizes and hashes unchecked.

        Of a bucket: what lies in it, whether it was downloaded or not.
        """
        kinds = (kind,) if kind else KINDS
        if self.bucket is not None:
            found = self.bucket.list(self.root, kinds)
        else:
            found = []
            for folder in kinds:
                for path in (self.root / folder).iterdir():
                    with suppress(ArtifactError):
                        found.append(Artifact(path, read_manifest(path)))
        return sorted(found, key=lambda a: (a.manifest.created, a.ref))

    def resolve(self, text: str, kind: Kind | None = None) -> Artifact:
        """Find and open an artifact by ref, name, digest, or a unique prefix of them.

        Raises:
            ArtifactError: nothing or several things fit, or it is altered.
        """
        return self.open(self.locate(text, kind).path)

    def locate(self, text: str, kind: Kind | None = None) -> Artifact:
        """Find an artifact as `resolve` does, looking at its manifest only.

        Raises:
            ArtifactError: nothing or several things fit; the nearest name is offered.
        """
        wanted = text.removeprefix(f"{kind}/") if kind else text
        all_of_kind = self.list(kind)
        exact = [a for a in all_of_kind if wanted in (a.ref, a.ref.partition("/")[2], a.digest)]
        named = [a for a in all_of_kind if wanted == a.manifest.name]
        prefixed = [
            a
            for a in all_of_kind
            if a.digest.startswith(wanted) or a.ref.partition("/")[2].startswith(wanted)
        ]
        if exact or named:
            return (exact or named[-1:])[0]
        if len(prefixed) == 1 and wanted:
            return prefixed[0]
        names = sorted({a.manifest.name for a in all_of_kind})
        close = nearest(text, names)
        what = kind or "artifact"
        if prefixed and wanted:
            listed = ", ".join(a.ref for a in prefixed[:5])
            raise ArtifactError(f"{text!r} fits several: {listed}", code="artifact-ambiguous")
        raise ArtifactError(
            f"there is no {what} {text!r} in {self.place.partition('?')[0]}",
            code="artifact-not-found",
            hint=f"did you mean {close!r}?" if close else "`raylm models ls` shows what is there",
        )

    def by_digest(self, digest: str) -> Artifact | None:
        """The artifact with this digest, if it is in the store."""
        return next((a for a in self.list() if a.digest == digest), None)

    # Removing ----------------------------------------------------------------------------

    def remove(self, artifact: Artifact) -> None:
        """Remove an artifact and what engines derived from it.

        Raises:
            ArtifactError: others descend from it.
        """
        children = [a.ref for a in self.list() if artifact.digest in a.manifest.parents]
        if children:
            raise ArtifactError(
                f"{artifact.ref} is needed by {', '.join(children)}",
                code="artifact-has-descendants",
                hint="remove those first",
            )
        if self.bucket is not None:
            self.bucket.remove(artifact)
        # The manifest goes first: from then on the folder does not count.
        (artifact.path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(artifact.path, ignore_errors=True)
        shutil.rmtree(self.root / "engine" / artifact.digest, ignore_errors=True)

    # Sharing -----------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold a named lock; the kernel frees it when the process dies.

        `waiting` is called once, with the holder, if another process has it.
        """
        path = self.root / "locks" / name
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if waiting:
                    waiting(file.read().strip() or "another process")
                while True:
                    with suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(0.2)
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


def stage_key(
    stage: str, code_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """The key under which a stage's result is found again."""
    return json_hash(
        {"stage": stage, "code": code_version, "config": config, "inputs": dict(inputs)}
    )[:32]


def library_versions() -> dict[str, str]:
    """Versions of Python, raylm and the libraries that decide results."""
    found = {"python": platform.python_version(), "raylm": raylm.__version__}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """The commit of the working folder, if it is a git checkout."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()
    return None


def _complete(path: Path, digest: str) -> bool:
    with suppress(ArtifactError):
        artifact = Artifact(path, read_manifest(path))
        verify(artifact)
        return artifact.digest == digest
    return False


def _times(artifact: Artifact) -> str:
    return "".join(
        f"{entry.path} {entry.size_bytes} {(artifact.path / entry.path).stat().st_mtime_ns}\n"
        for entry in artifact.manifest.files
    )
