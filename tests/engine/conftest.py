"""Tiny models in the formats that engines read, made once a session, and their references.

The models are random but sharp (large initial weights), so that greedy choices are far from
ties and texts can be compared for equality.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Chunk, Engine, Request, Sampling

EXACT = EngineConfig(kind="openvino", precision="f32", kv_cache_bytes=2**22)
VOCAB_SIZE = 400
EOS = 1
TEXT = [
    "def read(path: str) -> bytes:\n    with open(path, 'rb') as file:\n        return file.read()",
    "Die Größe der Straße in Århus, 5 € für ein naïves Café, 日本語のテキスト, 👍🏽 и так далее.",
    "The quick brown fox jumps over the lazy dog and the rain in Spain stays in the plain.",
] * 4

Reference = Callable[[list[int], int], list[int]]


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen have it: any bytes can come out of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """make_model(config class name, **config) -> a Hugging Face folder."""
    import torch
    import transformers

    def make(architecture: str = "Llama", dtype: str = "float32", **changes: object) -> Path:
        torch.manual_seed(7)
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": None,
            **changes,
        }
        config = getattr(transformers, f"{architecture}Config")(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
        folder = tmp_path_factory.mktemp(architecture.lower())
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture(scope="session")
def save_folder(tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """save_folder(model, sharper=1.0) -> its folder, as raylm writes it after training."""
    import torch

    from raylm.model.build import save_model

    def save(model: torch.nn.Module, sharper: float = 1.0) -> Path:
        folder = tmp_path_factory.mktemp(type(model).__name__.lower())
        with torch.no_grad():
            for parameter in {id(p): p for p in model.parameters() if p.dim() > 1}.values():
                parameter.mul_(sharper)
        tokenizers = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(str(tokenizers / "tokenizer.json"))
        (tokenizers / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
        model.config.architectures = [type(model).__name__]
        save_model(model.config, model.state_dict(), tokenizers, folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama(make_model) -> Path:
    return make_model("Llama")


@pytest.fixture(scope="session")
def int8_llama(llama, tmp_path_factory) -> Path:
    """The same model in compressed-tensors' pack-quantized format, 8 bits a weight."""
    return quantize_folder(llama, tmp_path_factory.mktemp("int8"), "pack-quantized")


@pytest.fixture(scope="session")
def int4_llama(llama, tmp_path_factory) -> Path:
    """The same model with 4 bits a weight and a scale for every 32 columns."""
    return quantize_folder(llama, tmp_path_factory.mktemp("int4"), "pack-quantized", 4, 32)


@pytest.fixture(scope="session")
def quantize() -> Callable[..., Path]:
    return quantize_folder


def quantize_folder(
    source: Path, folder: Path, layout: str, num_bits: int = 8, group_size: int | None = None
) -> Path:
    """Round to nearest, one scale per output row or group of columns; lm_head stays as it is."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )
    from safetensors.torch import load_file, save_file

    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        grouped = weight.reshape(weight.shape[0], -1, group_size or weight.shape[1])
        half = 2 ** (num_bits - 1)
        scale = grouped.abs().amax(2, keepdim=True) / (half - 1)
        integers = torch.round(grouped / scale).clamp(-half, half - 1).to(torch.int8)
        integers = integers.reshape(weight.shape)
        tensors[f"{name}_scale"] = scale[:, :, 0].contiguous()
        if layout == "pack-quantized":
            tensors[f"{name}_packed"] = pack_to_int32(integers, num_bits)
            tensors[f"{name}_shape"] = torch.tensor(integers.shape)
        else:
            tensors[name] = integers
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=num_bits,
            type="int",
            symmetric=True,
            strategy="channel" if group_size is None else "group",
            group_size=group_size,
        ),
        format=layout,
    )
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=layout,
        ignore=["lm_head"],
        quantization_status="compressed",
    )
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = json.loads(quantization.model_dump_json())
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def reference_of() -> Callable[[Path], Reference]:
    """reference_of(folder)(prompt_ids, max_tokens): transformers' greedy answer, f32."""
    import torch
    from transformers import AutoModelForCausalLM

    models: dict[Path, object] = {}

    def reference_of(folder: Path) -> Reference:
        if folder not in models:
            models[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = models[folder]

        def answer(prompt_ids: list[int], max_tokens: int) -> list[int]:
            ids = torch.tensor([prompt_ids])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            return out[0, len(prompt_ids) :].tolist()

        return answer

    return reference_of


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory) -> Path:
    """Converted folders of the session's models, so that each is converted once."""
    return tmp_path_factory.mktemp("engine-cache")


@pytest.fixture(scope="module")
def start(cache_root) -> Iterator[Callable[..., Engine]]:
    """start(folder, **changes to EXACT) -> an OpenVINO engine, closed after the module."""
    engines: list[Engine] = []

    def start(folder: Path, **changes: object) -> Engine:
        config = EngineConfig.model_validate({**EXACT.model_dump(), **changes})
        engines.append(load(folder, config, cache_root=cache_root, digest=folder.name))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


class Client:
    """Asks an engine from synchronous tests."""

    def __init__(self) -> None:
        self._count = 0

    def request(self, prompt_ids, emitted_ids=(), **sampling) -> Request:
        self._count += 1
        return Request(
            f"r{self._count}",
            tuple(prompt_ids),
            Sampling(**{"temperature": 0.0, **sampling}),
            tuple(emitted_ids),
        )

    @staticmethod
    def ids(chunks: list[Chunk]) -> list[int]:
        return [token_id for chunk in chunks for token_id in chunk.token_ids]

    @staticmethod
    def told(chunks: list[Chunk]) -> list[Chunk]:
        """The chunks without what they tell of the cache, which depends on others."""
        return [replace(chunk, num_cached_tokens=None) for chunk in chunks]

    @staticmethod
    def text(chunks: list[Chunk]) -> str:
        return "".join(chunk.text for chunk in chunks)

    async def chunks(self, engine: Engine, request: Request) -> list[Chunk]:
        return [chunk async for chunk in engine.generate(request)]

    def ask(self, engine: Engine, *requests: Request) -> list[list[Chunk]]:
        """All requests at once."""

        async def together():
            return await asyncio.gather(*(self.chunks(engine, r) for r in requests))

        return asyncio.run(together())


@pytest.fixture(scope="session")
def client() -> Client:
    return Client()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """A dozen prompts of 1 to 90 tokens: within a block, at its border, over several."""
    rng = random.Random(3)
    lengths = (1, 2, 5, 17, 31, 32, 33, 48, 64, 65, 80, 90)
    return [[rng.randrange(2, VOCAB_SIZE) for _ in range(n)] for n in lengths]
