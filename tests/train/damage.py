"""What may befall a checkpoint on a disk."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path


def damage(folder: Path, how: str, draw: random.Random | None = None) -> None:
    """Damage a manifest, or one of the shards: the largest, or one that is drawn."""
    # DeepSpeed lays scripts beside its shards.
    files = [path for path in (folder / "state").iterdir() if path.suffix != ".py"]
    shards = sorted(files, key=lambda p: (p.stat().st_size, p.name))
    shard = draw.choice(shards) if draw else shards[-1]
    size, manifest = shard.stat().st_size, folder / "manifest.json"
    place = draw.randrange(size) if draw else size // 2
    if how == "truncated":
        os.truncate(shard, place)
    elif how == "flipped":
        with shard.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    elif how == "extra":
        shutil.copy(shard, shard.with_name("zero_pp_rank_7_mp_rank_00_optim_states.pt"))
    elif how == "manifest":
        text = manifest.read_text()
        manifest.write_text(text.replace('"elapsed_s": ', '"elapsed_s": 1', 1))
    elif how == "missing":
        shard.unlink()
    elif how == "no manifest":
        manifest.unlink()
    else:
        raise ValueError(how)
