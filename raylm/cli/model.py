"""raylm model show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, open_store, read_config
from raylm.cli.output import emit, human_bytes, table

if TYPE_CHECKING:
    from raylm.model.describe import Description

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Show what a model is made of.")


@app.callback()
def model() -> None:
    """A group, though it has one command."""


@app.command("show")
def show(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A preset, a Hugging Face folder, or a model in the store. "
            "[default: the configuration's]",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """The stack, parameters by part, bytes, and FLOPs a token. Nothing is loaded or built."""
    found = _describe(model, config, sets, store)
    data: dict[str, Any] = {
        "name": found.name,
        "architecture": found.architecture,
        "vocab_size": found.vocab_size,
        "stack": found.stack,
        "parameters": found.parameters,
        "num_parameters": found.num_parameters,
        "fp32_bytes": 4 * found.num_parameters,
        "bf16_bytes": 2 * found.num_parameters,
        "seq_len": found.seq_len,
        "flops_per_token": found.flops_per_token,
    }
    emit(data, _text(found), output)


def _describe(
    model: str | None, config: str | None, sets: list[str] | None, store: str | None
) -> Description:
    from raylm.model.describe import describe_folder, describe_shape
    from raylm.model.presets import PRESETS, resolve_shape

    loaded = read_config(config, sets)
    settings, seq_len = loaded.config.model, loaded.config.data.seq_len
    if model is None and settings.path is not None:
        return describe_folder(loaded.base_dir / settings.path, seq_len)
    if model is None or model in PRESETS:
        if model is not None:
            settings = type(settings)(preset=model)
        shape = resolve_shape(settings, seq_len)
        vocab_size = _vocab_size(loaded)
        return describe_shape(settings.preset, shape, vocab_size, seq_len)
    if Path(model).is_dir():
        return describe_folder(Path(model), seq_len)
    return describe_folder(open_store(store, config).resolve(model, "model").path, seq_len)


def _vocab_size(loaded: Any) -> int:
    tokenizer = loaded.config.data.tokenizer
    if tokenizer.path is None:
        return int(tokenizer.vocab_size)
    from tokenizers import Tokenizer

    from raylm.data.tokenizer import vocab_size
    from raylm.model.folder import tokenizer_files

    (file, *_) = tokenizer_files(loaded.base_dir / tokenizer.path)
    return vocab_size(Tokenizer.from_file(str(file)))


def _text(found: Description) -> str:
    flops = "not known for this type"
    if found.flops_per_token is not None:
        flops = f"{found.flops_per_token / 1e6:,.1f} MFLOPs a token, rows of {found.seq_len:,}"
    stack = [("architecture", found.architecture), *found.stack.items()]
    counts = [
        (part, f"{count:,}", f"{count / found.num_parameters:.1%}")
        for part, count in found.parameters.items()
    ]
    counts.append(("all", f"{found.num_parameters:,}", "100.0%"))
    return "\n".join(
        [
            found.name,
            "",
            *(f"{name:<13} {what}" for name, what in stack),
            "",
            table(("part", "parameters", "share"), counts),
            "",
            f"{'in fp32':<13} {human_bytes(4 * found.num_parameters)}",
            f"{'in bf16':<13} {human_bytes(2 * found.num_parameters)}",
            f"{'to train':<13} {flops}",
        ]
    )
