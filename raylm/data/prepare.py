"""`prepare`: the data stage, from the files that the config names to a dataset artifact.

    list files -> scan (read, clean, hash) -> select -> tokenizer -> encode -> pack

Scanning and encoding are passes of Ray Data over the corpus; what lies between them works
on columns of hashes and sizes in the driver. Everything written is a function of the
files' contents, their names as given, the config and the seed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raylm.artifact import Artifact, hash_file
from raylm.config.data import DataConfig
from raylm.data.sources import SourceFile, list_files
from raylm.errors import DataError, MissingExtra
from raylm.stage import Context

CODE_VERSION = 1
"""Raised whenever the same input gives another dataset."""


def prepare(config: DataConfig, context: Context) -> Artifact:
    """Make the dataset artifact. Ray is connected already.

    Raises:
        DataError: the corpus is missing, unreadable, or too small.
        ModelError: `tokenizer.path` holds no tokenizer.
        HostError: no space, too few CPUs, files not shared with all nodes.
        MissingExtra: raylm was installed without its `data` extra.
    """
    for module in ("ray", "pyarrow", *(["ftfy"] if config.fix_mojibake else [])):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(module, extra="data")
    # Only now may modules be imported that need the extra.
    from raylm.data.preparation import Preparation
    from raylm.data.prepare_records import RecordPreparation
    from raylm.data.prepare_text import TextPreparation

    files = list_files(config, context.base_dir)
    kind: type[Preparation] = TextPreparation if config.format == "text" else RecordPreparation
    with context.store.draft("dataset", context.name) as draft:
        preparation = kind(config, context, files, draft.path)
        preparation.scan()
        preparation.make_tokenizer()
        preparation.encode()
        preparation.pack()
        return preparation.pace.run(
            lambda: draft.commit(
                config=config.model_dump(mode="json"), metrics=preparation.metrics()
            ),
            lambda: preparation.pace.say("hashing the dataset"),
        )


def fingerprint(config: DataConfig, base_dir: Path) -> dict[str, str]:
    """Digests of all inputs' contents, for the stage's key.

    `corpus` covers name, size and SHA-256 of every file in its order (the order decides which
    of equal documents is kept); `tokenizer` is there when one is given by path.

    Raises:
        DataError: a path is not there or cannot be read.
    """
    files = list_files(config, base_dir)
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(_hash, files))
    table = [(f.name, f.size_bytes, h) for f, h in zip(files, hashes, strict=True)]
    found = {"corpus": hashlib.sha256(json.dumps(table).encode()).hexdigest()}
    if config.tokenizer.path is not None:
        found["tokenizer"] = _tokenizer_hash(base_dir / Path(config.tokenizer.path).expanduser())
    return found


def _hash(file: SourceFile) -> str:
    try:
        return hash_file(file.path)
    except OSError as error:
        raise DataError(
            f"{file.name}: {file.path} cannot be read: {error.strerror}",
            code="data-forbidden",
            hint="change its permissions, or leave it out with data.exclude",
        ) from error


def _tokenizer_hash(folder: Path) -> str:
    from raylm.model.folder import tokenizer_files

    hashes: Sequence[tuple[str, str]] = [(f.name, hash_file(f)) for f in tokenizer_files(folder)]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
