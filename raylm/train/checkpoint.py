"""Checkpoints: a folder counts when its manifest is there, and is read only as hashed.

    <work>/checkpoints/step-00000100/
        manifest.json      progress (step, consumed samples, horizon, config hash, world size),
                           size and SHA-256 of each file, and a digest of all that
        state/...          what DeepSpeed wrote, one file or more a rank, and rng-<rank>.npy,
                           the state of torch's generator
    <work>/checkpoints/held-out-00000100.json
                           its held-out loss, where that was found after it was complete

Written beside (`.draft-<step>`), synced, renamed, and the rename synced; only then are older ones
removed. The newest sound one is restored, never merely the newest, and what is passed over is
told. DeepSpeed's files are pickles: they are opened only after their hashes were checked.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from raylm.artifact import (
    MANIFEST,
    FileEntry,
    disk_errors,
    hash_tree,
    json_hash,
    sync_folder,
    sync_tree,
    write_atomic,
)
from raylm.errors import ArtifactError, HostError
from raylm.train.shared import NOT_SHARED_HINT

_STATE = "state"
_DRAFT = ".draft-"
_ASIDE = ".aside-"
_NOTE = "held-out-"
_PROBE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: all that is needed, beside weights and optimizer, to go on."""

    step: int
    """Optimizer steps done."""
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
    """Measured at this very step, if it was: before the checkpoint was saved, or later."""
    consumed_samples: int | None = None
    """Samples of the order that lie behind, skipped ones included: the next step's first. None
    in checkpoints of raylm before it was noted."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint."""

    path: Path
    progress: Progress
    files: tuple[FileEntry, ...]

    @property
    def state(self) -> Path:
        """DeepSpeed's folder."""
        return self.path / _STATE


class Checkpointer:
    """Saves the checkpoints of one stage. All ranks call `save` together."""

    def __init__(
        self, folder: Path, *, rank: int, keep: int, barrier: Callable[[], None], keep_best: int = 0
    ) -> None:
        self.folder = folder
        self._rank, self._keep, self._keep_best, self._barrier = rank, keep, keep_best, barrier

    def save(
        self,
        progress: Progress,
        write: Callable[[Path], None],
        *,
        required: Collection[str] = (),
        spared: Collection[int] = (),
    ) -> Path:
        """Save a checkpoint; `write(folder)` writes this rank's share of the state.

        Args:
            required: names in that folder that must be there when all ranks have written.
            spared: steps whose checkpoints stay this time: their held-out loss is being found.

        Raises:
            HostError: the disk is full, or a rank's share is not there; earlier checkpoints are
                untouched.
        """
        draft = self.folder / f"{_DRAFT}{progress.step:08d}"
        final = self.folder / folder_name(progress.step)
        try:
            with disk_errors(self.folder), _told_by_the_disk(self.folder):
                if self._rank == 0:
                    self._begin(draft)
                self._barrier()
                write(draft / _STATE)
                self._barrier()
                if self._rank == 0:
                    _check_whole(draft / _STATE, required)
                    text = manifest_text(progress, hash_tree(draft))
                    sync_tree(draft)
                    write_atomic(draft / MANIFEST, text)
                    put_in_place(draft, final)
                    self._prune(progress.step, spared)
                self._barrier()
        except BaseException:
            if self._rank == 0:  # what is half there must not fill the disk
                shutil.rmtree(draft, ignore_errors=True)
            raise
        return final

    def _begin(self, draft: Path) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)
        for left in (*self.folder.glob(f"{_DRAFT}*"), *self.folder.glob(f"{_ASIDE}*")):
            shutil.rmtree(left, ignore_errors=True)  # of a save that was killed
        (draft / _STATE).mkdir(parents=True)

    def _prune(self, step: int, spared: Collection[int]) -> None:
        found = complete_checkpoints(self.folder)
        keep = [c.path.name for c in kept(found, step, self._keep, self._keep_best)]
        keep += [folder_name(other) for other in spared if other <= step]
        for path in self.folder.glob("step-*"):
            if path.name not in keep:
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
        for note in self.folder.glob(f"{_NOTE}*.json"):
            if note.stem.replace(_NOTE, "step-") not in keep:
                note.unlink(missing_ok=True)


def _check_whole(state: Path, required: Collection[str]) -> None:
    missing = sorted(name for name in required if not (state / name).exists())
    if missing:
        raise HostError(
            f"ranks have written their shares of a checkpoint, and the first does not see "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''} in {state}",
            code="store-not-shared",
            hint=NOT_SHARED_HINT,
        )


@contextmanager
def _told_by_the_disk(folder: Path) -> Iterator[None]:
    """Where torch's writer only says that it failed, let the disk say why."""
    try:
        yield
    except RuntimeError:
        probe = folder / f"{_DRAFT}probe"
        try:
            probe.write_bytes(b"\1" * _PROBE_BYTES)
        finally:
            probe.unlink(missing_ok=True)
        raise


def folder_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def put_in_place(draft: Path, final: Path) -> None:
    """Give a complete, synced draft its name, for good; what had the name is removed."""
    aside = final.with_name(f"{_ASIDE}{final.name}")
    if final.exists():  # passed over as damaged, or it would not be written again
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    draft.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def kept(found: Sequence[Checkpoint], step: int, keep: int, keep_best: int) -> list[Checkpoint]:
    """Which of some checkpoints stay when that of `step` is complete.

    Those after it are of a past that was passed over as damaged; of the others the newest stay,
    and those with the lowest held-out loss.
    """
    real = sorted((c for c in found if c.progress.step <= step), key=lambda c: -c.progress.step)
    # No number sorts before or after NaN: it would stay wherever it stands.
    measured = [c for c in real if math.isfinite(_loss(c))]
    best = sorted(measured, key=_loss)[:keep_best]
    return [c for c in real if c in real[:keep] or c in best]


def _loss(checkpoint: Checkpoint) -> float:
    """The held-out loss; infinite where it was not measured."""
    loss = checkpoint.progress.held_out_loss
    return math.inf if loss is None else loss


# Reading ---------------------------------------------------------------------------------


def manifest_text(progress: Progress, files: Sequence[FileEntry]) -> str:
    """The manifest of a checkpoint, as JSON."""
    values = {"progress": asdict(progress), "files": [asdict(entry) for entry in files]}
    # Through JSON and back: the digest is of what a reader will see.
    digest = json_hash(json.loads(json.dumps(values)))
    return json.dumps({**values, "digest": digest}, indent=1) + "\n"


def parse_checkpoint(text: str, path: Path) -> Checkpoint:
    """The checkpoint at `path` from its manifest's text; its files are not looked at.

    Raises:
        ArtifactError: it is no manifest, or was altered.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        digest = raw.pop("digest", None)
        progress = Progress(**raw["progress"] | {"losses": tuple(raw["progress"]["losses"])})
        files = tuple(FileEntry(**entry) for entry in raw["files"])
        inside = all(_is_inside(entry.path) for entry in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
    # Before there was a digest, none could be wrong.
    if (digest is not None and digest != json_hash(raw)) or not inside:
        raise _damaged("its manifest was altered")
    if path.name != folder_name(progress.step):
        raise _damaged(f"it is of step {progress.step}, which its name denies")
    return Checkpoint(path, progress, files)


def _is_inside(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _damaged(why: str) -> ArtifactError:
    return ArtifactError(why, code="checkpoint-damaged")


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, with what was noted of it later; its files are not looked at.

    Raises:
        ArtifactError: its manifest is missing, or was altered.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _damaged("it has no manifest") from error
    except (OSError, ValueError) as error:
        raise _damaged(f"its manifest cannot be read ({error})") from error
    found = parse_checkpoint(text, path)
    if found.progress.held_out_loss is not None:
        return found
    return replace(found, progress=replace(found.progress, held_out_loss=_noted(found)))


def note_held_out(folder: Path, step: int, loss: float) -> None:
    """Note the held-out loss of a complete checkpoint beside it; of one that is gone, nothing."""
    with suppress(ArtifactError):
        found = read_checkpoint(folder / folder_name(step))
        values = {"files": _identity(found), "held_out_loss": loss}
        write_atomic(_note(found), json.dumps(values) + "\n")


def _noted(checkpoint: Checkpoint) -> float | None:
    try:
        raw = json.loads(_note(checkpoint).read_text(encoding="utf-8"))
        # Another attempt may have written the same step anew.
        return float(raw["held_out_loss"]) if raw["files"] == _identity(checkpoint) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(checkpoint: Checkpoint) -> Path:
    return checkpoint.path.parent / f"{_NOTE}{checkpoint.progress.step:08d}.json"


def _identity(checkpoint: Checkpoint) -> str:
    return json_hash({entry.path: entry.sha256 for entry in checkpoint.files})


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, newest first; their hashes are not checked yet."""
    found = []
    for path in folder.glob("step-*"):
        with suppress(ArtifactError):
            found.append(read_checkpoint(path))
    return sorted(found, key=lambda c: -c.progress.step)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda p: (len(p.name), p.name), reverse=True)


def newest_complete(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint; older ones are not looked at, nor its hashes checked."""
    for path in _newest_first(folder):
        with suppress(ArtifactError):
            return read_checkpoint(path)
    return None


def check_files(folder: Path, files: Sequence[FileEntry]) -> None:
    """See that a folder holds these files and no others, sizes first, then hashes.

    Raises:
        ArtifactError: naming the first that differs, and how.
    """
    listed = {entry.path: entry for entry in files}
    try:
        there = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / MANIFEST
        }
        for name, entry in listed.items():
            if name not in there:
                raise _damaged(f"{name} is missing")
            if there[name] != entry.size_bytes:
                raise _damaged(f"{name} has {there[name]} of {entry.size_bytes} bytes")
        for name in there:
            if name not in listed:
                raise _damaged(f"{name} does not belong to it")
        for found in hash_tree(folder):
            if found != listed.get(found.path):
                raise _damaged(f"{found.path} was altered")
    except OSError as error:
        raise _damaged(f"it cannot be read ({error})") from error


def newest_sound(
    folder: Path, *, config_hash: str, tell: Callable[[str], None] = lambda text: None
) -> Checkpoint | None:
    """The checkpoint to resume from: the newest of this configuration whose hashes hold.

    `tell` hears which newer ones were passed over, and why.
    """
    passed = False
    for path in _newest_first(folder):
        try:
            checkpoint = read_checkpoint(path)
            if checkpoint.progress.config_hash != config_hash:
                raise _damaged("it is of another configuration")
            check_files(path, checkpoint.files)
        except ArtifactError as error:
            passed = True
            tell(f"the checkpoint {path.name} is passed over: {error.message}")
            continue
        if passed:
            tell(f"going on from the checkpoint of step {checkpoint.progress.step}")
        return checkpoint
    if passed:
        tell("no sound checkpoint is left: the run starts at its beginning")
    return None
