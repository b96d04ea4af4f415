"""From a Hugging Face folder to a folder that the OpenVINO engine starts from; offline, once.

    python -m raylm.engine.convert MODEL_DIR OUT_DIR

Needs neither torch nor transformers, and streams the weights from one memory map to another
file: seconds, and no more memory than the largest tensor. A folder is complete when it has a
manifest, which is written last, before the folder gets its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raylm.engine.apart import ended, run_apart
from raylm.engine.decoder import eos_token_ids, parse_decoder
from raylm.engine.quantized import check_quantization, stored_precision
from raylm.engine.weights import open_checkpoint
from raylm.errors import ModelError
from raylm.model.folder import read_config, tokenizer_files

CONVERTER_VERSION = 1
"""Part of every cached folder's name; raise it when the graph or the folder changes."""

_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def ensure_ir(model_dir: Path, cache_root: Path, digest: str) -> Path:
    """The converted folder of a model, made now if it is not there or was altered.

    The conversion runs in a process of its own, under a file lock: of many callers one
    converts, and the others find it done. The place is `cache_root/<digest>/<key>`.

    Raises:
        ModelError: the model cannot be converted, with the converter's own reason.
    """
    key = f"openvino-{version('openvino')}-{CONVERTER_VERSION}"
    target = cache_root / digest / key
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{key}.lock")):
        if is_complete(target):
            return target
        shutil.rmtree(target, ignore_errors=True)
        for left_over in target.parent.glob(f".{key}.*.tmp"):  # of a killed conversion
            shutil.rmtree(left_over, ignore_errors=True)
        _convert_apart(model_dir, target)
    return target


def is_complete(folder: Path) -> bool:
    """Whether a converted folder has a manifest and every file in it has its size."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        return all((folder / name).stat().st_size == facts["size"] for name, facts in files.items())
    except (OSError, ValueError, KeyError):
        return False


def convert(model_dir: Path, out_dir: Path) -> None:
    """Convert a Llama-type decoder; `out_dir` appears complete or not at all.

    Raises:
        ModelError: the folder lacks something, is unsafe, or is of another architecture.
    """
    # Before the heavy imports, what can be told from the configuration alone.
    config = read_config(model_dir)
    decoder = parse_decoder(config)
    check_quantization(config)
    tokenizer_files(model_dir)
    weights = open_checkpoint(model_dir)
    from raylm.engine.graph import write_ir

    temporary = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        try:
            write_ir(decoder, weights, temporary / "model.xml")
        except RuntimeError as error:  # OpenVINO's own: shapes that do not go together
            raise ModelError(
                f"{model_dir} does not convert: {error}", code="conversion-failed"
            ) from error
        for name in _COPIED:
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, temporary / name)
        facts = {
            "vocab_size": decoder.vocab_size,
            "max_context_tokens": decoder.max_positions,
            "sliding_window": decoder.sliding_window,
            "eos_token_ids": list(eos_token_ids(model_dir)),
            "weights": stored_precision(weights),
        }
        (temporary / "engine.json").write_text(json.dumps(facts, indent=1))
        _seal(temporary)
        temporary.rename(out_dir)
        _sync(out_dir.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Write the manifest, once every file it lists is on the disk."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = {"sha256": digest, "size": path.stat().st_size}
    libraries = {name: version(name) for name in ("openvino", "numpy", "tokenizers")}
    manifest = {
        "schema": 1,
        "kind": "openvino-ir",
        "converter": CONVERTER_VERSION,
        "libraries": libraries,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(folder / "manifest.json")
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_apart(model_dir: Path, target: Path) -> None:
    run_apart(
        "raylm.engine.convert",
        (model_dir, target),
        what=f"the conversion of {model_dir}",
        code="conversion-failed",
    )


def main(arguments: list[str]) -> int:
    """Convert, as a process of its own."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m raylm.engine.convert MODEL_DIR OUT_DIR\n")
        return 2
    return ended(lambda: convert(Path(arguments[0]), Path(arguments[1])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
