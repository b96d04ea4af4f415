"""The `engine` section: how a model is run for inference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raylm.config.section import OUTSIDE_KEY, Section


class PromptLookup(Section):
    """Guess that what followed the last tokens before follows them again."""

    kind: Literal["prompt_lookup"] = "prompt_lookup"
    """Where the guesses come from: the request's own prompt and answer."""
    num_tokens: int = Field(4, ge=1, le=16)
    """Tokens guessed at a time."""
    ngram: int = Field(3, ge=1, le=16)
    """Tokens that must have been there before, in this order."""


class DraftModel(Section):
    """Let a small model with the same vocabulary guess, and the served one say what is right."""

    kind: Literal["draft"]
    """Where the guesses come from: another model, whose keys and values lie in the same cache."""
    model: str
    """An artifact (name, digest, or its start) or a Hugging Face folder."""
    num_tokens: int = Field(4, ge=1, le=16)
    """Tokens guessed at a time, at most."""


def _kind_of(value: object) -> str:
    found = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return found if found == "draft" else "prompt_lookup"


Speculation = Annotated[
    Annotated[PromptLookup, Tag("prompt_lookup")] | Annotated[DraftModel, Tag("draft")],
    Discriminator(_kind_of),
]


class VllmConfig(Section):
    """An environment of its own that has vLLM, and what vLLM takes there."""

    python: Annotated[str, OUTSIDE_KEY]
    """Its interpreter, at the same path on every node: vLLM, raylm, and the Ray and minor Python of
    the cluster."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What this build of vLLM runs on. On cuda every replica takes `tensor_parallel` GPUs."""
    tensor_parallel: Annotated[int, OUTSIDE_KEY] = Field(1, ge=1)
    """GPUs of one replica, which may lie on several nodes."""
    memory_share: Annotated[float, OUTSIDE_KEY] = Field(0.9, gt=0, le=1)
    """On cuda: part of each GPU's memory for weights, keys and values, in place of
    `kv_cache_bytes`."""

    @model_validator(mode="after")
    def _one_processor(self) -> VllmConfig:
        if self.device == "cpu" and self.tensor_parallel > 1:
            raise ValueError("tensor_parallel is of GPUs; with device cpu it is 1")
        return self


class EngineConfig(Section):
    """How a model is run for inference."""

    kind: str = "auto"
    """openvino, torch, vllm, a plug-in's name, or auto: the fastest that can run the model."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Arithmetic of activations; auto takes bf16 on processors with AMX, f32 on others."""
    dynamic_quantization: Literal["auto", "on", "off"] = "auto"
    """Round activations to 8 bits, a few columns with a scale of their own, before products with
    integer weights; auto does so on processors with instructions for them (VNNI), except where
    `precision: f32` is asked for. OpenVINO engine only."""
    kv_cache: Literal["auto", "f32", "bf16", "u8"] = "auto"
    """Storage of keys and values; auto takes 8 bits where the engine has them, f32 where
    `precision: f32` is asked for."""
    kv_cache_bytes: int = Field(256 * 2**20, ge=2**20)
    """Memory for keys and values of one replica."""
    prefix_cache: bool = True
    """Keep keys and values of answered requests while there is room, for those that begin alike.
    The torch engine keeps none."""
    speculation: Speculation | None = None
    """Guess tokens and verify several in one step, for as long as guesses are right often enough
    to save time: where answers repeat their prompt or themselves (prompt_lookup), or where a small
    model often says the same (draft). OpenVINO engine only."""
    max_batch_size: int = Field(64, ge=1, le=1024)
    """Sequences stepped together."""
    max_batch_tokens: int = Field(2048, ge=16)
    """Tokens (prompt and decode) in one step."""
    max_context_tokens: int | None = Field(None, ge=2)
    """Prompt and answer together, or each of them in an encoder-decoder; None takes the model's
    own limit."""
    max_waiting: int = Field(256, ge=1)
    """Requests that may wait in one replica; more are refused with 503."""
    step_timeout_s: Annotated[float, OUTSIDE_KEY] = Field(60.0, gt=0)
    """A step that takes longer hangs: its requests end with an error, the replica is replaced."""
    vllm: VllmConfig | None = None
    """Where vLLM is; None: nowhere. With device cuda, `auto` takes it for the decoders."""
    num_threads: Annotated[int | None, OUTSIDE_KEY] = Field(None, ge=1)
    """Threads of one replica; None takes its share of the cores."""
