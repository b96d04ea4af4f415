"""Mirror: a run's checkpoints, copied to the bucket of its store while it trains.

    <url>/checkpoints/<stage key>/step-00000100/
        manifest.json            {"checkpoint": as in the folder here, "books": [path, size, hash]};
                                 the last put, and the first to be deleted
        state/...                as in the folder here
        books/metrics.jsonl      the run's lines up to this step
        books/skipped.json       the windows that were skipped, if there are any

A thread of the driver does it, one checkpoint at a time and the newest first, so that a slow
network only makes the copies rarer; a failure is told and tried again, and ends nothing. While
one is uploaded its files are held by hard links, whatever is pruned here. The bucket keeps as
many as the folder here. A driver that finds something newer there than here (the disk was lost,
or this is another machine) downloads it, checks the hashes, and the workers go on from it.

Checkpoints hold pickles: who may write to the bucket can run code where the run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from raylm.artifact import MANIFEST, FileEntry, disk_errors, hash_tree, sync_tree, write_atomic
from raylm.bucket import Bucket
from raylm.config.train import CheckpointConfig
from raylm.errors import ArtifactError, RaylmError
from raylm.progress import Report, Tick
from raylm.stage import CHECKPOINTS
from raylm.train.checkpoint import (
    Checkpoint,
    check_files,
    folder_name,
    kept,
    manifest_text,
    newest_complete,
    newest_sound,
    parse_checkpoint,
    put_in_place,
)
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.skips import SKIPPED, read_skips

_BOOKS = "books"
_PLACES = (f"{_BOOKS}/{METRICS}", f"{_BOOKS}/{SKIPPED}")
_LOOK_S = 0.5
_PART_S = 5.0
"""In which an upload that is given up should get through the part of a file that it is at."""
_RETRY_S = (5.0, 15.0, 60.0)
"""Pauses after failures in a row; the last is that of all further ones."""


class _GivenUp(Exception):
    """The driver ends before the upload does."""


class _Pruned(Exception):
    """The checkpoint was removed before it was held."""


class Mirror:
    """The copies of one stage's checkpoints; as a context, it makes them while it is entered."""

    def __init__(
        self, bucket: Bucket, name: str, work: Path, config: CheckpointConfig, report: Report
    ) -> None:
        self._bucket, self._name, self._work, self._config = bucket, name, work, config
        self._folder = work / CHECKPOINTS
        self._report = report
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raylm-mirror", daemon=True)
        self._there: tuple[FileEntry, ...] | None = None
        """Files of the newest that is known to be in the bucket."""

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        # A run that is through leaves a model, which is uploaded next: copies are not needed.
        if kind is None:
            self._given_up.set()
        deadline = time.monotonic() + self._config.upload_wait_s
        self._closing.set()
        try:
            is_told = False
            while kind and self._thread.is_alive() and time.monotonic() < deadline:
                self._thread.join(_LOOK_S)
                if self._thread.is_alive() and not is_told:
                    is_told = True
                    self._tell("uploading the last checkpoint; again ends at once")
        finally:
            self._given_up.set()
        self._thread.join(_PART_S)
        if kind and self._thread.is_alive():
            self._tell("the last checkpoint is here alone: its upload takes too long")

    # Up ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        failures, next_s = 0, 0.0
        while not self._given_up.is_set():
            is_last = self._closing.wait(_LOOK_S)
            newest = newest_complete(self._folder)
            is_due = is_last or time.monotonic() >= next_s
            if self._given_up.is_set():
                return
            if newest is not None and newest.files != self._there and is_due:
                try:
                    self._upload(newest)
                    failures = 0
                except _GivenUp:
                    return
                except _Pruned:
                    continue  # a newer one is there
                except Exception as error:
                    next_s = time.monotonic() + _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                    failures += 1
                    text = error.message if isinstance(error, RaylmError) else str(error)
                    self._tell(f"{newest.path.name} is not uploaded: {text}")
            if is_last:
                return

    def _upload(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        name = f"{self._name}/{checkpoint.path.name}"
        with self._held(checkpoint) as folder:
            books = self._write_books(folder, checkpoint.progress.step)
            local = json.loads(manifest_text(checkpoint.progress, checkpoint.files))
            manifest = {"checkpoint": local, "books": [asdict(entry) for entry in books]}
            self._bucket.drop_folder(name)  # half of it, or one that was passed over
            self._bucket.push_folder(
                name, folder, (*checkpoint.files, *books),
                json.dumps(manifest, indent=1) + "\n", check=self._check,
            )  # fmt: skip
        self._there = checkpoint.files
        seconds = time.monotonic() - started
        self._tell(f"{checkpoint.path.name} uploaded to {self._bucket.place} in {seconds:.1f} s")
        try:
            self._prune(checkpoint.progress.step)
        except RaylmError as error:
            self._tell(f"older ones stay in {self._bucket.place}: {error.message}")

    def _check(self) -> None:
        if self._given_up.is_set():
            raise _GivenUp

    @contextmanager
    def _held(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """A folder with the same files, which stay when the checkpoint is pruned."""
        folder = self._folder / ".uploading"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for entry in checkpoint.files:
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    _link(checkpoint.path / entry.path, target)
                except FileNotFoundError as error:
                    # Pruning takes the manifest first.
                    if not (checkpoint.path / MANIFEST).exists():
                        raise _Pruned from error
                    raise ArtifactError(
                        f"{entry.path} is missing", code="checkpoint-damaged"
                    ) from error
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_books(self, folder: Path, step: int) -> tuple[FileEntry, ...]:
        books = folder / _BOOKS
        books.mkdir()
        lines = [x for x in read_metrics(self._work / METRICS) if x["step"] <= step]
        (books / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if (self._work / SKIPPED).exists():
            shutil.copyfile(self._work / SKIPPED, books / SKIPPED)
        return tuple(
            FileEntry(f"{_BOOKS}/{f.path}", f.size_bytes, f.sha256) for f in hash_tree(books)
        )

    def _prune(self, step: int) -> None:
        found, there = self._listed()
        keep = kept([c for c, _ in found], step, self._config.keep, self._config.keep_best)
        for name in there:
            if name not in [c.path.name for c in keep]:
                self._bucket.drop_folder(f"{self._name}/{name}")

    # Down --------------------------------------------------------------------------------

    def fetch(self, config_hash: str) -> None:
        """Download the newest sound checkpoint, if it is newer than what is here.

        Raises:
            HostError: the bucket cannot be reached, or the disk here is full.
        """
        here = newest_sound(self._folder, config_hash=config_hash)
        found, _ = self._listed(tell=True)
        for checkpoint, books in sorted(found, key=lambda x: -x[0].progress.step):
            step = checkpoint.progress.step
            if here is not None and here.progress.step >= step:
                if here.files == checkpoint.files:
                    self._there = here.files
                return
            if checkpoint.progress.config_hash != config_hash:
                continue
            try:
                with disk_errors(self._folder):
                    self._download(checkpoint, books)
            except ArtifactError as error:
                self._pass_over(checkpoint.path.name, error)
                continue
            self._there = checkpoint.files
            self._tell(f"{checkpoint.path.name} downloaded from {self._bucket.place}")
            return

    def drop(self) -> None:
        """Remove all copies: the run starts anew."""
        self._bucket.drop_folder(self._name)

    def _download(self, checkpoint: Checkpoint, books: tuple[FileEntry, ...]) -> None:
        name = checkpoint.path.name
        draft = self._folder / f".draft-{name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            files = (*checkpoint.files, *books)
            self._bucket.pull_files(f"{self._name}/{name}", draft, files)
            check_files(draft, files)
            self._take_books(draft / _BOOKS, checkpoint.progress.step)
            shutil.rmtree(draft / _BOOKS)
            sync_tree(draft)
            write_atomic(draft / MANIFEST, manifest_text(checkpoint.progress, checkpoint.files))
            put_in_place(draft, self._folder / folder_name(checkpoint.progress.step))
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _take_books(self, books: Path, step: int) -> None:
        """Books here that reach as far are of the same run, and stay."""
        last = max((line["step"] for line in read_metrics(self._work / METRICS)), default=0)
        if last < step:
            write_atomic(self._work / METRICS, (books / METRICS).read_text(encoding="utf-8"))
        if len(read_skips(self._work)) < len(read_skips(books)):
            write_atomic(self._work / SKIPPED, (books / SKIPPED).read_text(encoding="utf-8"))

    def _listed(
        self, *, tell: bool = False
    ) -> tuple[list[tuple[Checkpoint, tuple[FileEntry, ...]]], list[str]]:
        """Complete copies with their books, and the names of all that is there."""
        found = []
        texts = self._bucket.manifests(self._name)
        for name, text in texts.items():
            try:
                if text is not None:
                    found.append(_parse(text, Path(name)))
            except ArtifactError as error:
                if tell:
                    self._pass_over(name, error)
        return found, list(texts)

    def _pass_over(self, name: str, error: ArtifactError) -> None:
        self._tell(f"{name} in {self._bucket.place} is passed over: {error.message}")

    def _tell(self, text: str) -> None:
        self._report(Tick("train", text, is_notice=True))


def _parse(text: str, name: Path) -> tuple[Checkpoint, tuple[FileEntry, ...]]:
    try:
        raw: dict[str, Any] = json.loads(text)
        books = tuple(FileEntry(**entry) for entry in raw["books"])
        if any(book.path not in _PLACES for book in books):
            raise ValueError("a book of another name")
        inside = json.dumps(raw["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"its manifest cannot be read ({type(error).__name__}: {error})",
            code="checkpoint-damaged",
        ) from error
    return parse_checkpoint(inside, name), books


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
