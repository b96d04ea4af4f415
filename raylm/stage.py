"""What a stage is given besides its config and its inputs.

A stage is `(config section, input artifacts, context) -> Artifact`. It runs in the driver,
on a Ray cluster that is already connected, may be killed at any moment, and finds in
`context.work` what an earlier, killed attempt with the same key left there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylm.progress import Report, silent
from raylm.store import Store

CHECKPOINTS = "checkpoints"
"""Folder in `Context.work`, and of a store's bucket, from which the pipeline removes what a
stage kept once its result is recorded."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a stage works and whom it tells."""

    store: Store
    name: str
    """Name of the run; names the artifacts."""
    seed: int
    base_dir: Path
    """Relative paths of the configuration start here."""
    work: Path
    """This stage's own folder in the run (checkpoints, metrics, logs); survives a kill."""
    report: Report = silent
    resume: bool = True
    """Go on from what is in `work`; if not, start anew."""
    key: str = ""
    """The stage's key; empty where nobody will look for its result."""
