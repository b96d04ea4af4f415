"""Load a checkpoint that another number of workers saved.

DeepSpeed's own way for ZeRO 1 to 3: the ranks' shards are put together to whole tensors, its
"universal checkpoint" (arXiv 2406.18820), of which each rank then loads its new share. Losses
afterwards differ from those of the old number of workers by rounding alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from raylm.artifact import disk_errors
from raylm.errors import TrainError

_UNIVERSAL = "universal"


def load_resharded(
    engine: Any, state: Path, scratch: Path, *, rank: int, barrier: Callable[[], None]
) -> None:
    """Load the state that `engine.save_checkpoint` wrote at `state` for other ranks.

    All ranks call it together; `scratch` is on a disk that they share, and is removed again.
    The checkpoint's hashes have been checked: its files are pickles.
    """
    if not engine.zero_optimization():
        # ZeRO 0: every rank has all of it.
        engine.load_checkpoint(str(state.parent), tag=state.name)
        return
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _merge(state, scratch / _UNIVERSAL)
    barrier()
    with _own_books(engine.optimizer.optimizer), _loading_universal(engine):
        engine.load_checkpoint(str(scratch), tag=_UNIVERSAL)
    barrier()
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)


def _merge(state: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(state),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with disk_errors(target), quiet[0], quiet[1]:
            ds_to_universal.main(options)
    except KeyError as error:
        raise TrainError(
            f"the state of this optimizer cannot be cut for another number of workers ({error})",
            code="train-reshard",
            hint="go on with as many workers as wrote the checkpoint",
        ) from error


@contextlib.contextmanager
def _own_books(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep each group's options and each state's step its own while they are loaded.

    DeepSpeed 0.19 loads ZeRO-3 with the first group's options for all groups, so that norms
    would decay from then on, and with one tensor as the step of all states, which each of them
    then moves.
    """
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


@contextlib.contextmanager
def _loading_universal(engine: Any) -> Iterator[None]:
    # Left on, it would make later saves of ZeRO-3 incomplete (DeepSpeed issue 7546).
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
