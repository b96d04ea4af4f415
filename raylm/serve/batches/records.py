"""Records: small JSON files, private to this user, that hold a frozen dataclass each."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from raylm.artifact import sync_folder, write_atomic

R = TypeVar("R")
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def write_record(path: Path, record: object) -> None:
    """Replace a record; readers see the old or the new one.

    Raises:
        HostError: the disk is full or cannot be written.
    """
    write_atomic(path, json.dumps(asdict(record)), mode=PRIVATE_FILE)  # type: ignore[call-overload]


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record, or None where there is none."""
    try:
        found: R = _adapter(kind).validate_json(path.read_bytes())  # type: ignore[arg-type]
    except FileNotFoundError:
        return None
    return found


def make_private(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, for this user alone."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        sync_folder(folder.parent)
    return folder


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
