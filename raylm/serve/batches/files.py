"""The files of one tenant: uploaded requests, and the answers to them.

    <store>/batches/<tenant>/files/file-<32 hex digits>.jsonl    the content
    <store>/batches/<tenant>/files/file-<32 hex digits>.json     its record; with it, it exists

A record is written last and removed first. Names are ours: nothing that a client sends is one.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raylm.artifact import disk_errors, sync_folder
from raylm.serve.batches.records import PRIVATE_FILE, make_private, read_record, write_record

Purpose = Literal["batch", "batch_output"]
ABANDONED_S = 86_400.0
"""No upload takes so long: what has no record by then was given up."""
_ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a file; times are Unix time."""

    id: str
    filename: str
    """As its owner calls it."""
    purpose: Purpose
    num_bytes: int
    created_s: float
    expires_s: float

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": int(self.created_s),
            "expires_at": int(self.expires_s),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


class Files:
    """One tenant's."""

    def __init__(self, tenant: Path) -> None:
        self.folder = tenant / "files"

    def content(self, file_id: str) -> Path:
        """Where the content of a file of ours lies."""
        return self.folder / f"{file_id}.jsonl"

    def create(self, file_id: str) -> int:
        """An open file for content that is to come.

        Raises:
            HostError: the disk is full or cannot be written.
        """
        with disk_errors(self.folder):
            make_private(self.folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            return os.open(self.content(file_id), flags, PRIVATE_FILE)

    def publish(self, record: FileRecord) -> None:
        """Make a file of content that is complete and synced; once more does no harm."""
        sync_folder(self.folder)
        write_record(self._record(record.id), record)

    def find(self, file_id: str, now_s: float) -> FileRecord | None:
        """The record of a file, unless there is none or it has expired."""
        if not _ID.fullmatch(file_id):
            return None
        record = read_record(self._record(file_id), FileRecord)
        return record if record is not None and record.expires_s > now_s else None

    def all(self, now_s: float) -> list[FileRecord]:
        """Every file that has not expired."""
        found = (self.find(path.stem, now_s) for path in self.folder.glob("file-*.json"))
        return [record for record in found if record is not None]

    def count(self) -> int:
        """Files, expired ones among them, and content that is being received."""
        return sum(1 for _ in self.folder.glob("file-*.jsonl"))

    def remove(self, file_id: str) -> None:
        """Remove a file and its record, whether or not it has one."""
        self._record(file_id).unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)

    def sweep(self, now_s: float, kept: Collection[str]) -> None:
        """Remove what has expired, and content that nobody will ever make a file of.

        `kept` are the ids of files that batches are writing.
        """
        for path in self.folder.glob("file-*.jsonl"):
            # Its owner may delete it just now.
            with suppress(FileNotFoundError):
                if self._is_over(path, now_s, kept):
                    self.remove(path.stem)

    def _is_over(self, path: Path, now_s: float, kept: Collection[str]) -> bool:
        record = read_record(self._record(path.stem), FileRecord)
        if record is not None:
            return record.expires_s <= now_s
        return path.stem not in kept and now_s - path.stat().st_mtime > ABANDONED_S

    def _record(self, file_id: str) -> Path:
        return self.folder / f"{file_id}.json"


def record_of(
    files: Files, file_id: str, filename: str, purpose: Purpose, keep_s: float
) -> FileRecord:
    """The record of content that lies there since now."""
    now_s = time.time()
    num_bytes = files.content(file_id).stat().st_size
    return FileRecord(file_id, filename, purpose, num_bytes, now_s, now_s + keep_s)
