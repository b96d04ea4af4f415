"""run.json: what a run was asked, how far it came, and what became of each stage."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raylm.artifact import write_atomic
from raylm.config.load import Loaded
from raylm.errors import RaylmError
from raylm.processes import created_here
from raylm.store import git_revision, library_versions

RECORD = "run.json"
State = Literal["done", "skipped", "planned"]


@dataclass(slots=True)
class StageResult:
    """What became of one stage."""

    stage: str
    state: State
    key: str = ""
    ref: str | None = None
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunResult:
    """What became of a run."""

    run_id: str
    path: Path
    stages: list[StageResult]
    report: Path | None = None
    """The run's HTML page."""

    def of(self, stage: str) -> StageResult | None:
        """The result of one stage, if it took part."""
        return next((s for s in self.stages if s.stage == stage), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [asdict(s) for s in self.stages]
        report = str(self.report) if self.report else None
        return {
            "run_id": self.run_id, "path": str(self.path), "report": report, "stages": stages,
        }  # fmt: skip


class Record:
    """Writes run.json whenever something changed."""

    def __init__(self, path: Path, loaded: Loaded, run_id: str, dry_run: bool) -> None:
        self._file = path / RECORD
        self._quiet = dry_run
        self._values: dict[str, Any] = {
            "id": run_id,
            "name": loaded.config.name,
            "state": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": loaded.config.model_dump(mode="json"),
            "base_dir": str(loaded.base_dir),
            "stages": [],
        }
        if not dry_run:
            self._values |= {
                "process": {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "created": created_here(),
                },
                "versions": library_versions(),
                "git_revision": git_revision(),
            }

    @contextmanager
    def recording(self, result: RunResult) -> Iterator[None]:
        """Keep the state true to what happens, failures and signals included."""
        self.write(result)
        try:
            yield
        except BaseException as error:
            self._values["state"] = "failed" if isinstance(error, Exception) else "interrupted"
            self._values["error"] = error.message if isinstance(error, RaylmError) else repr(error)
            if isinstance(error, RaylmError):
                self._values["error_code"] = error.code
            self.write(result)
            raise
        self._values["state"] = "done"
        self.write(result)

    def write(self, result: RunResult) -> None:
        """Write the file anew."""
        if not self._quiet:
            self._values["stages"] = [asdict(stage) for stage in result.stages]
            write_atomic(self._file, json.dumps(self._values, indent=2) + "\n")
