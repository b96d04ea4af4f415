"""What a model folder is for, told from its config.json: which class reads it, what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raylm.engine.encode import Pooling
from raylm.errors import ModelError
from raylm.model.folder import Architecture, architecture_of

UNBOUNDED_TOKENS = 4096
"""Taken where relative positions set no limit and the folder names none."""

_ANSWERS = frozenset({"generate", "logprobs", "continue", "cancel"})
# Relative positions in the decoder: rows of a batch may begin at different ones.
_ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5"})
# They count positions from behind the padding token's id.
_SHIFTED_POSITIONS = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
_POOLINGS: dict[Architecture, tuple[Pooling, ...]] = {
    "decoder": ("mean", "last"),
    "encoder-decoder": ("mean",),
    "encoder": ("mean", "cls"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How transformers loads a model, and what the engine offers of it."""

    architecture: Architecture
    auto: str
    """A class of transformers."""
    features: frozenset[str]
    poolings: tuple[Pooling, ...]

    @property
    def encodes_prompt(self) -> bool:
        """Prompt and answer go through stacks of their own."""
        return self.architecture == "encoder-decoder"


def kind_of(config: dict[str, Any]) -> Kind:
    """The kind of model that a config.json describes.

    Raises:
        ModelError: the engine has no use for it, with the reason.
    """
    architecture = architecture_of(config)
    name = str((config.get("architectures") or [""])[0])
    poolings = _POOLINGS[architecture]
    if architecture == "encoder-decoder":
        whole = name.endswith("ForConditionalGeneration")
        if not whole or config.get("model_type") not in _ENCODER_DECODERS:
            raise unsupported(
                f"{name or config.get('model_type')}; of encoder-decoders it runs "
                f"{', '.join(sorted(_ENCODER_DECODERS))} with both halves and the head for tokens"
            )
        return Kind(architecture, "AutoModelForSeq2SeqLM", _ANSWERS | {"embed"}, poolings)
    if name.endswith("ForSequenceClassification"):
        _check_classes(config)
        features = frozenset({"embed", "classify", "cancel"})
        return Kind(architecture, "AutoModelForSequenceClassification", features, poolings)
    if architecture == "encoder" or (name.endswith("Model") and not name.endswith("HeadModel")):
        masked = name.endswith("ForMaskedLM")
        auto = "AutoModelForMaskedLM" if masked else "AutoModel"
        return Kind(architecture, auto, frozenset({"embed", "cancel"}), poolings)
    return Kind(architecture, "AutoModelForCausalLM", _ANSWERS | {"embed"}, poolings)


def max_positions(kind: Kind, config: dict[str, Any], max_position_embeddings: int | None) -> int:
    """The most tokens that a model takes, as far as its positions go.

    `max_position_embeddings` is transformers' reading of the config. T5 names the length that
    it was trained with `n_positions`.
    """
    if kind.encodes_prompt:
        return int(config.get("n_positions") or UNBOUNDED_TOKENS)
    limit = max_position_embeddings or 2**20
    if config.get("model_type") in _SHIFTED_POSITIONS:
        limit -= int(config.get("pad_token_id") or 0) + 1
    return limit


def class_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Names of a classifier's classes, in the order of its logits."""
    named = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
    count = len(named) or int(config.get("num_labels") or 2)
    return tuple(named.get(number, f"LABEL_{number}") for number in range(count))


def _check_classes(config: dict[str, Any]) -> None:
    if config.get("problem_type") == "regression" or len(class_names(config)) < 2:
        raise unsupported("a regression: it has no classes")


def unsupported(what: str) -> ModelError:
    """The error for a model that would not be run as it was meant to be."""
    return ModelError(f"the torch engine does not cover {what}", code="unsupported-architecture")
