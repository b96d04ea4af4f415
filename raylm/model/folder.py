"""A Hugging Face folder from outside: what is checked before anything of it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from raylm.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that a model folder is complete and holds only safetensors; return its config.

    Raises:
        ModelError: something is missing, pickled, or wants remote code.
    """
    config = read_config(folder)
    weight_files(folder)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ModelError: it is missing, unreadable, or asks for code of its own to be run.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json",
            code="missing-config",
            hint="give a Hugging Face folder with config.json, *.safetensors and tokenizer.json",
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", code="bad-config") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object", code="bad-config")
    if "auto_map" in config:
        raise ModelError(
            f"{path} asks for code shipped with the model (auto_map), which raylm never runs",
            code="remote-code",
            hint="use a model whose architecture is part of transformers",
        )
    return config


Architecture = Literal["decoder", "encoder-decoder", "encoder"]
_ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet",
    "modernbert", "roberta", "roformer", "xlm-roberta",
}  # fmt: skip


def architecture_of(config: dict[str, Any]) -> Architecture:
    """Which of the three architectures a model folder's config.json describes.

    Raises:
        ModelError: it says neither what class nor what type of model it is.
    """
    if config.get("is_encoder_decoder") or config.get("model_type") in ("t5", "mt5", "bart"):
        return "encoder-decoder"
    name = (config.get("architectures") or [""])[0]
    if config.get("model_type") in _ENCODERS and not config.get("is_decoder"):
        return "encoder"
    if name.endswith("ForMaskedLM"):
        return "encoder"
    if config.get("model_type") or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    raise ModelError(
        "config.json names no model_type", code="bad-config", hint="save it with transformers"
    )


def special_ids(folder: Path) -> tuple[int, ...]:
    """Ids of all special tokens of a tokenizer folder, in order.

    Raises:
        ModelError: tokenizer.json is missing or not JSON.
    """
    tokenizer_files(folder)
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder}: not JSON: {error}", code="bad-tokenizer") from error
    added = tokenizer.get("added_tokens", [])
    return tuple(sorted(int(token["id"]) for token in added if token.get("special")))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, as the index names them if there is one.

    Raises:
        ModelError: there are none (`pickled-weights` if there are pickles instead), or one
            that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{index} is not an index of weights: {error}", code="missing-weights"
            ) from None
        files = [folder / Path(name).name for name in sorted(set(named))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise ModelError(f"{folder} lacks {', '.join(absent)}", code="missing-weights")
    if files:
        return files
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickled:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when read",
            code="pickled-weights",
            hint="convert them where you trust them: "
            "model.save_pretrained(folder, safe_serialization=True)",
        )
    raise ModelError(f"{folder} has no *.safetensors", code="missing-weights")


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files that are there.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json",
            code="missing-tokenizer",
            hint="save a fast one: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def special_token_ids(folder: Path) -> dict[str, int | None]:
    """Ids of the bos, eos, pad and mask tokens that a tokenizer folder names, and of ChatML's
    turn end.

    Raises:
        ModelError: tokenizer.json is missing or not JSON.
    """
    tokenizer_files(folder)
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{folder}: not JSON: {error}", code="bad-tokenizer") from error
    ids = {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens", [])}
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "mask"):
        token = settings.get(f"{name}_token")
        found[name] = ids.get(token["content"] if isinstance(token, dict) else token)
    found["turn_end"] = ids.get("<|im_end|>")
    return found
