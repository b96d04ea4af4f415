"""A Hugging Face folder from outside: what is checked before anything of it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylm.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that a model folder is complete and holds only safetensors; return its config.

    Raises:
        ModelError: something is missing, pickled, or wants remote code.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json",
            code="model-not-found",
            hint="give a Hugging Face folder with config.json, *.safetensors and tokenizer.json",
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not JSON: {error}", code="model-broken") from error
    if "auto_map" in config:
        raise ModelError(
            f"{config_file} asks for code of its own (auto_map)",
            code="remote-code",
            hint="raylm runs no code that comes with a model",
        )
    if not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
        if pickled:
            raise ModelError(
                f"{folder} has only pickled weights ({pickled[0]}), which can run code when read",
                code="pickled-weights",
                hint="convert them where you trust them: "
                "model.save_pretrained(folder, safe_serialization=True)",
            )
        raise ModelError(f"{folder} has no *.safetensors", code="model-not-found")
    return dict(config)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files that are there.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json",
            code="tokenizer-not-found",
            hint="save a fast one: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def special_token_ids(folder: Path) -> dict[str, int | None]:
    """Ids of the bos, eos and pad tokens that a tokenizer folder names, and of ChatML's turn end.

    Raises:
        ModelError: tokenizer.json is missing or not JSON.
    """
    tokenizer_files(folder)
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{folder}: not JSON: {error}", code="model-broken") from error
    ids = {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens", [])}
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        token = settings.get(f"{name}_token")
        found[name] = ids.get(token["content"] if isinstance(token, dict) else token)
    found["turn_end"] = ids.get("<|im_end|>")
    return found
