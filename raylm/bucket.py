"""Bucket: the part of a store that several machines share, on an object store.

    <url>/<kind>/<name>-<digest12>/   an artifact's files; its manifest is the last single put
    <url>/index/<stage key>.json      which artifact a stage's key has
    <url>/checkpoints/<stage key>/    of a training that goes on (raylm/train/mirror.py)

Object stores have no rename. Here none is needed: an artifact's address is its content's, so
whoever writes it a second time writes the same bytes, and until the manifest is there it does
not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylm.artifact import MANIFEST, Artifact, FileEntry, Kind, parse_manifest
from raylm.errors import ArtifactError, ConfigError, HostError

_PARALLEL = 8
_COPY_BYTES = 8 * 2**20


def is_url(text: str) -> bool:
    """Whether a store's place is a URL rather than a folder."""
    return re.match(r"[a-z][a-z0-9+]*:/", text) is not None


def refuse_key(url: str) -> None:
    """Refuse a URL that has a secret in it.

    Raises:
        ConfigError: with where secrets belong.
    """
    if re.match(r"[^/]*//[^/]*:[^/]*@", url):
        raise ConfigError(
            "the store's URL has a key in it, which would end up in logs and run records",
            code="store-key-in-url",
            hint="set $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, or use a profile",
        )


class Bucket:
    """What lies under one URL: s3://bucket/prefix, gs://bucket/prefix."""

    def __init__(self, url: str) -> None:
        """Connect, and see that the bucket is there.

        Credentials are those of the environment, as the cloud's own tools find them; for other
        S3 servers the URL takes `?endpoint_override=host:port&scheme=http`.

        Raises:
            ConfigError: the URL is of no known kind, or there is no such bucket.
            HostError: the object store cannot be reached, or refuses.
        """
        import pyarrow as pa
        from pyarrow import fs

        self.place = url.partition("?")[0].rstrip("/")
        refuse_key(url)
        try:
            self._files, prefix = fs.FileSystem.from_uri(url)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise ConfigError(
                f"store={self.place}: {_first_line(error)}",
                code="store-unknown",
                hint="give a folder, s3://bucket/prefix or gs://bucket/prefix",
            ) from error
        self._prefix = prefix.strip("/")
        with self._errors():
            found = self._files.get_file_info(self._prefix.partition("/")[0])
        if found.type == fs.FileType.NotFound:
            raise ConfigError(
                f"store={self.place}: there is no bucket {found.path!r}",
                code="store-missing",
                hint="create it, or mend its name or region",
            )

    # Artifacts ---------------------------------------------------------------------------

    def push(self, artifact: Artifact) -> None:
        """Upload an artifact; one that is complete there already is left as it is."""
        if self._read(f"{artifact.ref}/{MANIFEST}") is not None:
            return
        manifest = artifact.manifest
        self.push_folder(artifact.ref, artifact.path, manifest.files, manifest.to_json())

    def pull(self, ref: str, into: Path) -> None:
        """Download an artifact into an empty folder; hashes are the caller's to check.

        Raises:
            ArtifactError: it is not there, or not complete.
        """
        artifact = self.get(ref, into)
        self.pull_files(ref, into, artifact.manifest.files)
        (into / MANIFEST).write_text(artifact.manifest.to_json(), encoding="utf-8")

    def get(self, ref: str, path: Path) -> Artifact:
        """The artifact `ref`, as it would be at `path`.

        Raises:
            ArtifactError: it is not there, or its manifest cannot be read.
        """
        text = self._read(f"{ref}/{MANIFEST}")
        if text is None:
            raise ArtifactError(
                f"{self.place}/{ref} has no {MANIFEST}: it is not a complete artifact",
                code="artifact-missing",
                hint="run the stage again; half-written folders are never used",
            )
        return Artifact(path, parse_manifest(text, f"{self.place}/{ref}/{MANIFEST}"))

    def list(self, root: Path, kinds: Sequence[Kind]) -> list[Artifact]:
        """All complete artifacts of some kinds, as they would be under `root`."""
        from pyarrow import fs

        refs: list[str] = []
        with self._errors():
            for kind in kinds:
                where = fs.FileSelector(f"{self._prefix}/{kind}".strip("/"), allow_not_found=True)
                refs += [f"{kind}/{info.base_name}" for info in self._files.get_file_info(where)]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            found = pool.map(lambda ref: self._get_or_none(ref, root / ref), refs)
            return [artifact for artifact in found if artifact is not None]

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact, its manifest first: from then on it does not count."""
        self.drop_folder(artifact.ref)

    def _get_or_none(self, ref: str, path: Path) -> Artifact | None:
        try:
            return self.get(ref, path)
        except ArtifactError:
            return None

    # Folders -----------------------------------------------------------------------------

    def push_folder(
        self,
        name: str,
        folder: Path,
        files: Sequence[FileEntry],
        manifest: str,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Upload files of a folder, and when they are all there a manifest's text.

        `check` is called between parts of files, and ends the upload by raising.

        Raises:
            ArtifactError: a file is not what its entry says; the manifest is not put.
        """

        def put(entry: FileEntry) -> None:
            if self._put(folder / entry.path, f"{name}/{entry.path}", check) != entry.sha256:
                raise ArtifactError(
                    f"{folder / entry.path} was altered: its hash is not the manifest's",
                    code="artifact-altered",
                    hint="run the stage that made it again",
                )

        self._each(put, files)
        check()
        self._write(f"{name}/{MANIFEST}", manifest)

    def pull_files(self, name: str, into: Path, files: Sequence[FileEntry]) -> None:
        """Download files of a folder; hashes are the caller's to check.

        Raises:
            ArtifactError: one is not there.
        """

        def get(entry: FileEntry) -> None:
            try:
                self._get(f"{name}/{entry.path}", into / entry.path)
            except FileNotFoundError as error:
                raise ArtifactError(
                    f"{self.place}/{name}/{entry.path} is missing",
                    code="artifact-altered",
                    hint="remove what it belongs to, and run the stage that makes it again",
                ) from error

        self._each(get, files)

    def manifests(self, name: str) -> dict[str, str | None]:
        """The folders below one, and the text of each one's manifest, if it is there."""
        from pyarrow import fs

        with self._errors():
            where = fs.FileSelector(self._path(name), allow_not_found=True)
            found = [info.base_name for info in self._files.get_file_info(where)]
        return {child: self._read(f"{name}/{child}/{MANIFEST}") for child in found}

    def drop_folder(self, name: str) -> None:
        """Delete a folder, its manifest first: from then on it does not count."""
        with self._errors():
            manifest = self._path(f"{name}/{MANIFEST}")
            if self._files.get_file_info(manifest).is_file:
                self._files.delete_file(manifest)
            # What a listing does not show is not there: markers are Arrow's own.
            if self._files.get_file_info(self._path(name)).type.name != "NotFound":
                self._files.delete_dir(self._path(name))

    def _each(self, work: Callable[[FileEntry], None], files: Sequence[FileEntry]) -> None:
        with self._errors(), ThreadPoolExecutor(_PARALLEL) as pool:
            jobs = [pool.submit(work, entry) for entry in files]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)

    # Index -------------------------------------------------------------------------------

    def remember(self, stage_key: str, entry: str) -> None:
        """Record the index entry (JSON) of a stage's key."""
        self._write(f"index/{stage_key}.json", entry)

    def recall(self, stage_key: str) -> str | None:
        """The index entry of a stage's key."""
        text = self._read(f"index/{stage_key}.json")
        try:
            return None if text is None else str(json.loads(text)["ref"])
        except (ValueError, KeyError):
            return None

    # Objects -----------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _read(self, name: str) -> str | None:
        with self._errors():
            try:
                with self._files.open_input_file(self._path(name)) as file:
                    return bytes(file.read()).decode()
            except FileNotFoundError:
                return None

    def _write(self, name: str, text: str) -> None:
        with self._errors(), self._files.open_output_stream(self._path(name)) as out:
            out.write(text.encode())

    def _put(self, source: Path, name: str, check: Callable[[], None]) -> str:
        """Upload a file; the SHA-256 of what was sent."""
        sent = hashlib.sha256()
        with source.open("rb") as file, self._files.open_output_stream(self._path(name)) as out:
            while part := file.read(_COPY_BYTES):
                check()
                out.write(part)
                sent.update(part)
        return sent.hexdigest()

    def _get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._files.open_input_stream(self._path(name)) as file, target.open("wb") as out:
            while part := file.read(_COPY_BYTES):
                out.write(part)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A full disk here is told by whoever owns the disk.
            if error.errno is not None and error.filename is not None:
                raise
            raise HostError(
                f"the object store of {self.place} failed: {_first_line(error)}",
                code="store-unreachable",
                hint="see to network, credentials (for S3: $AWS_ACCESS_KEY_ID and "
                "$AWS_SECRET_ACCESS_KEY, or a profile) and region; what is complete is kept, "
                "and `raylm run` goes on from there",
            ) from error


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
