"""The random generators of a rank (dropout draws from them), kept in every checkpoint.

<checkpoint>/state/rng-<rank>.npy, rng-cuda-<rank>.npy     uint8, as torch gives them
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raylm.arrays import save_array


def save_generators(folder: Path, rank: int, *, gpu: bool) -> None:
    """Write the states of the CPU's generator, and of that of this rank's GPU."""
    save_array(folder / f"rng-{rank}.npy", torch.get_rng_state().numpy())
    if gpu:
        save_array(folder / f"rng-cuda-{rank}.npy", torch.cuda.get_rng_state().numpy())


def generator_files(world_size: int, *, gpu: bool) -> tuple[str, ...]:
    """What `save_generators` writes on all ranks."""
    names = ("rng", "rng-cuda") if gpu else ("rng",)
    return tuple(f"{name}-{rank}.npy" for name in names for rank in range(world_size))


def load_generators(folder: Path, rank: int, *, gpu: bool) -> None:
    """Go on drawing where the rank was; a checkpoint without a GPU's state leaves that one be."""
    torch.set_rng_state(_read(folder / f"rng-{rank}.npy"))
    on_gpu = folder / f"rng-cuda-{rank}.npy"
    if gpu and on_gpu.exists():
        torch.cuda.set_rng_state(_read(on_gpu))


def seed_generators(seed: int, step: int, rank: int) -> None:
    """New ones for ranks that there were not before: the same whenever they begin at this step."""
    torch.manual_seed(seed + step * 1_000_003 + rank)


def _read(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(file, allow_pickle=False))
