"""The draft model of `engine.speculation`: found, checked and converted before it is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from raylm.artifact import hash_tree, read_manifest
from raylm.config.engine import DraftModel
from raylm.engine.convert import ensure_ir
from raylm.errors import ConfigError
from raylm.model.folder import check_folder, read_config


def draft_ir(settings: DraftModel, model_dir: Path, cache_root: Path) -> Path:
    """The converted folder of the draft for a model; `model_dir` may be converted itself.

    Raises:
        ConfigError: `no-draft` if there is no such folder, `draft-tokenizer` if its vocabulary
            is not that of the model.
        ModelError: it cannot be converted.
    """
    folder = Path(settings.model)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"engine.speculation.model: {folder} is no model folder",
            code="no-draft",
            hint="name an artifact of the store or a Hugging Face folder",
        )
    check_vocabulary(model_dir, folder)
    if (folder / "engine.json").is_file():
        return folder
    check_folder(folder)
    return ensure_ir(folder, cache_root, _digest(folder))


def check_vocabulary(model_dir: Path, draft_dir: Path) -> None:
    """See that ids mean the same in both models, by what their tokenizers hold.

    Raises:
        ConfigError: they do not.
    """
    if _vocabulary(model_dir) != _vocabulary(draft_dir):
        raise ConfigError(
            f"engine.speculation.model: {draft_dir} has another vocabulary than {model_dir}",
            code="draft-tokenizer",
            hint="a draft must be trained, pruned or distilled with the tokenizer of its model",
        )


def _vocabulary(folder: Path) -> tuple[int, str]:
    """Rows of the logits, and a hash of every token with its id."""
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    text = json.dumps(sorted(tokens.items()))
    return read_config(folder)["vocab_size"], hashlib.sha256(text.encode()).hexdigest()


def _digest(folder: Path) -> str:
    """Of an artifact its own, else of all files."""
    if (folder / "manifest.json").is_file():
        return read_manifest(folder).digest
    table = repr([(file.path, file.sha256) for file in hash_tree(folder)])
    return hashlib.sha256(table.encode()).hexdigest()
