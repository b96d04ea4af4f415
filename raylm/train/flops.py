"""The FLOPs of a training step: the model's own work on the tokens that it was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.model.describe import shape_of
from raylm.model.folder import read_config
from raylm.model.presets import resolve_shape
from raylm.model.shapes import DecoderShape, EncoderDecoderShape


@dataclass(frozen=True, slots=True)
class Flops:
    """Of one token, forward and backward (PaLM, arXiv 2204.02311, appendix B)."""

    per_token: int
    """Padding counts: it is worked on like text."""
    per_target: int = 0
    """More for a token that has a target: a decoder's head works on those alone."""

    def of_step(self, num_tokens: int, num_targets: int) -> int:
        """Of a step over all workers."""
        return num_tokens * self.per_token + num_targets * self.per_target


def flops_of(
    model: ModelConfig,
    config: TrainConfig,
    objective: ObjectiveName,
    *,
    seq_len: int,
    vocab_size: int,
    source_len: int | None = None,
) -> Flops | None:
    """The FLOPs of a training; None where no formula is right.

    That is: folders whose shape is not exactly one of ours; adapters, whose frozen matrices have
    no gradients; preferences, where a second model works along.

    Args:
        model: `path`, if it has one, is absolute.
        vocab_size: the tokenizer's; a folder's own is taken instead.
        source_len: of pairs, tokens of a row on the encoder's side; None takes `seq_len`.

    Raises:
        ModelError: the folder has no config.json that can be read.
    """
    if config.lora is not None or objective == "dpo":
        return None
    if model.path is None:
        shape = resolve_shape(model, seq_len)
    else:
        read = read_config(Path(model.path))
        found = shape_of(read)
        if found is None:
            return None
        shape, vocab_size = found, int(read["vocab_size"])
    if isinstance(shape, EncoderDecoderShape):
        return Flops(shape.flops_per_token(vocab_size, seq_len, source_len))
    whole = shape.flops_per_token(vocab_size, seq_len)
    if not isinstance(shape, DecoderShape):
        return Flops(whole)
    head = 6 * vocab_size * shape.hidden_size
    return Flops(whole - head, head)
