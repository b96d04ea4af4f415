"""From a model folder and a LoRA adapter to a plain model folder; offline, once.

    python -m raylm.engine.merge MODEL_DIR ADAPTER_DIR OUT_DIR

Needs neither torch nor PEFT. Weights go from one memory map to another file, a tensor at a time,
in the types and files that they had; sums are made in f32 and rounded once.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.engine.adapter import CONFIG, Adapter, LowRank, read_adapter
from raylm.engine.apart import ended
from raylm.engine.weights import StoredTensor, map_file, open_checkpoint
from raylm.errors import ModelError
from raylm.model.folder import check_folder, weight_files

CODE_VERSION = 2
"""Raised when the same model and adapter give another result."""
_COPIED = frozenset({".json", ".jinja", ".txt", ".model", ".md"})
_LEFT_OUT = frozenset({"manifest.json", CONFIG})


def merge(model_dir: Path, adapter_dir: Path, out_dir: Path) -> None:
    """Write the model with the adapter added to its weights into the empty folder `out_dir`.

    Raises:
        ModelError: the model is quantized or unsafe, the adapter is not one of LoRA alone, or
            they do not go together.
    """
    config = check_folder(model_dir)
    if config.get("quantization_config") or config.get("compression_config"):
        raise ModelError(
            f"{model_dir} is quantized: an adapter cannot be merged into it",
            code="model-quantized",
            hint="merge it into the original, and compress the merged model",
        )
    adapter = read_adapter(adapter_dir, str(config.get("model_type")))
    check_fits(adapter, model_dir, config)
    for path in weight_files(model_dir):
        write_merged(map_file(path), adapter.layers, out_dir / path.name)
    # A model may have the adapters it was itself made with beside its weights.
    adapters = {path.parent for path in model_dir.rglob(CONFIG)} - {model_dir}
    for source in sorted(model_dir.rglob("*")):
        if not adapters.isdisjoint(source.parents):
            continue
        target = out_dir / source.relative_to(model_dir)
        if source.suffix in _COPIED and source.is_file() and source.name not in _LEFT_OUT:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def check_fits(adapter: Adapter, model_dir: Path, config: Mapping[str, Any]) -> None:
    """See that every layer of an adapter is one of the model, of the same shape.

    Raises:
        ModelError: one is not.
    """
    weights = open_checkpoint(model_dir)
    for layer, added in adapter.layers.items():
        name = f"{layer}.weight"
        if name not in weights:
            tied = config.get("tie_word_embeddings", False) and "head" in layer
            raise ModelError(
                f"the adapter {adapter.folder} is for {layer}, and {model_dir} has no {name}"
                + (": it shares the weight of the embedding" if tied else ""),
                code="adapter-misfit",
            )
        weight = weights[name]
        if weight.shape != added.shape:
            raise ModelError(
                f"the adapter {adapter.folder} is for a {layer} of shape {list(added.shape)}, and "
                f"that of {model_dir} has {list(weight.shape)}",
                code="adapter-misfit",
            )


def write_merged(
    tensors: Mapping[str, StoredTensor], layers: Mapping[str, LowRank], path: Path
) -> None:
    """Write a safetensors file with what adapters add added.

    Raises:
        ModelError: a sum is not finite, or of no type that has one.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.data.nbytes
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are to be aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.flush()
        for name, tensor in tensors.items():
            layer = layers.get(name.removesuffix(".weight"))
            data = tensor.data if layer is None else merged(name, tensor, layer)
            np.ascontiguousarray(data).tofile(file)


def merged(name: str, weight: StoredTensor, added: LowRank) -> NDArray[Any]:
    """A weight with what its adapter adds, in the weight's own type.

    Raises:
        ModelError: the sum is not finite in that type, or the type has no fractions.
    """
    exact = weight.as_float32() + added.delta()
    words: NDArray[Any]
    with np.errstate(over="ignore"):
        if weight.dtype == "F32":
            words, found = exact, exact
        elif weight.dtype == "F16":
            words = found = exact.astype("<f2")
        elif weight.dtype == "BF16":
            words = round_bfloat16(exact)
            found = StoredTensor("BF16", words).as_float32()
        else:
            raise ModelError(f"{name} is stored as {weight.dtype}", code="adapter-misfit")
    if not (np.isfinite(exact).all() and np.isfinite(found).all()):
        raise ModelError(f"{name} is not finite with the adapter merged", code="adapter-not-finite")
    return words


def round_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16, as its 16-bit words; halfway to the even one."""
    words = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def main(arguments: list[str]) -> int:
    """Merge, as a process of its own."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m raylm.engine.merge MODEL_DIR ADAPTER_DIR OUT_DIR\n")
        return 2
    model_dir, adapter_dir, out_dir = map(Path, arguments)
    return ended(lambda: merge(model_dir, adapter_dir, out_dir))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
