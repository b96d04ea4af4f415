"""A store with the models that are served: two of one name, and one that does not load."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from raylm.store import Store
from tests.serve.conftest import write_llama

NAME = "demo"


@dataclass(frozen=True, slots=True)
class Models:
    """Refs of models that answer to the same name, so that clients go on through an upgrade."""

    folder: Path
    old: str
    new: str
    broken: str


def write_models(folder: Path) -> Models:
    """A store in a folder; the broken model's weights are not what its manifest says."""
    store = Store(folder)
    refs = [_write(store, folder, layers) for layers in (2, 3, 4)]
    weights = store.resolve(refs[2], "model").path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    return Models(folder, *refs)


def _write(store: Store, scratch: Path, layers: int) -> str:
    source = write_llama(scratch / f"hf-{layers}", layers=layers)
    with store.draft("model", NAME) as draft:
        shutil.copytree(source, draft.path, dirs_exist_ok=True)
        artifact = draft.commit()
    shutil.rmtree(source)
    return artifact.ref.partition("/")[2]
