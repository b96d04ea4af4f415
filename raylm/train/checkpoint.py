"""Checkpoints: a folder counts when its manifest is there, and is read only as hashed.

    <work>/checkpoints/step-00000100/
        manifest.json      step, horizon, config hash, world size, size and SHA-256 of each file
        state/...          what DeepSpeed wrote, one file or more a rank, and rng-<rank>.npy,
                           the state of torch's generator

Written beside, synced, renamed; the newest complete one is restored, never merely the newest.
DeepSpeed's files are pickles: they are opened only after their hashes were checked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import MANIFEST, disk_errors, hash_tree, sync_tree, write_atomic

_STATE = "state"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: all that is needed, beside weights and optimizer, to go on."""

    step: int
    """Optimizer steps done; consumed samples are this times the global batch."""
    horizon: int | None
    horizon_at: int
    """The step at which a time limit's horizon was fixed; 0 otherwise."""
    elapsed_s: float
    """Seconds of training steps so far."""
    config_hash: str
    world_size: int
    losses: tuple[float, ...] = ()
    """Of the last steps, oldest first, for the divergence guard."""
    held_out_loss: float | None = None
    """Measured at this very step, if it was."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint."""

    path: Path
    progress: Progress

    @property
    def state(self) -> Path:
        """DeepSpeed's folder."""
        return self.path / _STATE


class Checkpointer:
    """Saves and finds the checkpoints of one stage. All ranks call `save` together."""

    def __init__(
        self, folder: Path, *, rank: int, keep: int, barrier: Callable[[], None], keep_best: int = 0
    ) -> None:
        self.folder = folder
        self._rank, self._keep, self._keep_best, self._barrier = rank, keep, keep_best, barrier

    def save(self, progress: Progress, write: Callable[[Path], None]) -> Path:
        """Save a checkpoint; `write(folder)` writes this rank's share of the state.

        Raises:
            HostError: the disk is full; earlier checkpoints are untouched.
        """
        draft = self.folder / f".draft-{progress.step:08d}"
        final = self.folder / f"step-{progress.step:08d}"
        with disk_errors(self.folder):
            if self._rank == 0:
                shutil.rmtree(draft, ignore_errors=True)
                (draft / _STATE).mkdir(parents=True)
            self._barrier()
            write(draft / _STATE)
            self._barrier()
            if self._rank == 0:
                manifest = {
                    "progress": asdict(progress),
                    "files": [asdict(entry) for entry in hash_tree(draft)],
                }
                sync_tree(draft)
                write_atomic(draft / MANIFEST, json.dumps(manifest, indent=1) + "\n")
                shutil.rmtree(final, ignore_errors=True)
                draft.rename(final)
                self._prune()
            self._barrier()
        return final

    def _prune(self) -> None:
        for old in surplus(complete_checkpoints(self.folder), self._keep, self._keep_best):
            (old.path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(old.path, ignore_errors=True)


def surplus(found: Sequence[Checkpoint], keep: int, keep_best: int) -> list[Checkpoint]:
    """Which of some checkpoints, newest first, are neither among the newest nor the best."""
    measured = [c for c in found if c.progress.held_out_loss is not None]
    best = sorted(measured, key=lambda c: c.progress.held_out_loss or 0.0)[:keep_best]
    return [c for c in found[keep:] if c not in best]


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, newest first; their hashes are not checked yet."""
    found = []
    for path in folder.glob("step-*"):
        try:
            raw: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            progress = raw["progress"] | {"losses": tuple(raw["progress"]["losses"])}
            found.append(Checkpoint(path, Progress(**progress)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda c: -c.progress.step)


def sound(checkpoint: Checkpoint) -> bool:
    """Whether every file of a checkpoint still has the hash of its manifest."""
    listed = json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return [asdict(entry) for entry in hash_tree(checkpoint.path)] == listed


def newest_sound(folder: Path, *, config_hash: str) -> Checkpoint | None:
    """The checkpoint to resume from: the newest of this configuration whose hashes hold."""
    for checkpoint in complete_checkpoints(folder):
        if checkpoint.progress.config_hash == config_hash and sound(checkpoint):
            return checkpoint
    return None
