"""How a text's states become its vector, as the folder's makers meant it."""

from __future__ import annotations

import json
from pathlib import Path

from raylm.engine.encode import Pooling
from raylm.engine.torch.kind import Kind, unsupported
from raylm.errors import ModelError

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def own_pooling(folder: Path, kind: Kind) -> Pooling:
    """The pooling that a sentence-transformers folder was trained with; the mean elsewhere.

    Raises:
        ModelError: the folder wants more than pooling, which would be left out.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return kind.poolings[0]
    try:
        return _of_modules(folder, json.loads(modules.read_text()), kind)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{modules} cannot be followed: {error!r}", code="bad-config") from error


def _of_modules(folder: Path, modules: list[dict[str, str]], kind: Kind) -> Pooling:
    steps = {module["type"].rpartition(".")[2]: module for module in modules}
    if unknown := set(steps) - {"Transformer", "Pooling", "Normalize"}:
        raise unsupported(f"the modules {', '.join(sorted(unknown))} of modules.json")
    if "Pooling" not in steps:
        return kind.poolings[0]
    settings = json.loads((folder / steps["Pooling"]["path"] / "config.json").read_text())
    wanted = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    pooling = _MODES.get(wanted[0]) if len(wanted) == 1 else None
    if pooling is None or pooling not in kind.poolings:
        raise unsupported(f"the pooling {', '.join(wanted)}")
    return pooling
