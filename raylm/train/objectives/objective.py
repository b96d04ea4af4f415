"""What an objective is, which there are, and which fits what is given; free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from raylm.config.data import Format
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.data.shards import Batch
from raylm.errors import ConfigError
from raylm.model.folder import Architecture
from raylm.registry import Registry

if TYPE_CHECKING:
    import torch

    from raylm.model.build import Head


Ask = Callable[[Any, Batch], "torch.Tensor"]
"""A model and a batch to figures of its rows, [n, figures of a row]."""


class Objective(Protocol):
    """A loss, and the scores that evaluation reads from the same forward pass."""

    name: str
    at_start: Ask | None
    """What must be known of the model before its first step, if anything, of every row: after
    `prepare` (raylm/train/reference.py)."""

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """Look at the fresh model once, before it is sharded and trained."""

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed over the batch's targets (labels, pairs), a float32 scalar with gradient.

        Args:
            whole_head: parts of the model may be called by themselves, and weights read (ZeRO-3
                has them only within the whole model's forward pass).
        """

    def scores(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits float32 [t, C], targets int64 [t] and rows int64 [t] of the batch's targets,
        in their order; C is the vocabulary, or the classes.
        """


OBJECTIVES = Registry(
    "objective",
    {
        "causal": "raylm.train.objectives.causal:Causal",
        "sft": "raylm.train.objectives.causal:Sft",
        "seq2seq": "raylm.train.objectives.seq2seq:Seq2Seq",
        "mlm": "raylm.train.objectives.mlm:Mlm",
        "classify": "raylm.train.objectives.classify:Classify",
        "dpo": "raylm.train.objectives.dpo:Dpo",
    },
)
_NEEDS: dict[ObjectiveName, tuple[Architecture, tuple[Format, ...], Head]] = {
    "causal": ("decoder", ("text", "chat"), "causal"),
    "sft": ("decoder", ("chat",), "causal"),
    "seq2seq": ("encoder-decoder", ("pairs",), "seq2seq"),
    "mlm": ("encoder", ("text",), "masked"),
    "classify": ("encoder", ("labels",), "classes"),
    "dpo": ("decoder", ("preferences",), "causal"),
}
_DEFAULTS: dict[Format, ObjectiveName] = {
    "chat": "sft", "pairs": "seq2seq", "labels": "classify", "preferences": "dpo",
}  # fmt: skip
_ALWAYS_APART: tuple[ObjectiveName, ...] = ("seq2seq", "classify", "dpo")
EXAMPLES: dict[Architecture, str] = {
    "decoder": "llama-3m", "encoder-decoder": "t5-10m", "encoder": "bert-10m",
}  # fmt: skip


def objective_for(name: str) -> Objective:
    """A new objective of that name.

    Raises:
        ConfigError: there is none; the nearest is offered.
    """
    objective: Objective = OBJECTIVES.load(name)()
    return objective


def head_of(name: ObjectiveName) -> Head:
    """The head that a model needs for an objective."""
    return _NEEDS[name][2]


def choose(config: TrainConfig, format: Format, architecture: Architecture) -> ObjectiveName:
    """The objective of a run: the one asked for, or the one that data and model are for.

    Raises:
        ConfigError: data, model, objective and what is set for it do not go together.
    """
    name = config.objective or usual(format, architecture)
    needed, formats, _ = _NEEDS[name]
    if format not in formats:
        fitting = [n for n, (a, f, _) in _NEEDS.items() if format in f]
        raise ConfigError(
            f"train.objective={name} does not learn from data.format={format}",
            code="objective-format",
            hint=f"set train.objective to {' or '.join(fitting)}, or data.format to "
            f"{' or '.join(formats)}",
        )
    if architecture != needed:
        article = "a" if needed == "decoder" else "an"
        raise ConfigError(
            f"train.objective={name} trains {article} {needed}, the model is of type "
            f"{architecture}",
            code="objective-model",
            hint=f"set model.preset to {EXAMPLES[needed]}, or model.path to {article} {needed}",
        )
    if not config.mask_documents and name in _ALWAYS_APART:
        raise ConfigError(
            f"train.mask_documents=false: train.objective={name} needs records kept apart",
            code="config-conflict",
            hint="leave it true",
        )
    if config.dpo_beta != TrainConfig().dpo_beta and name != "dpo":
        raise ConfigError(
            f"train.dpo_beta={config.dpo_beta:g}: train.objective={name} has no such factor",
            code="config-conflict",
            hint="remove it, or set data.format to preferences",
        )
    return name


def usual(format: Format, architecture: Architecture) -> ObjectiveName:
    """The objective of data of a format, for models of an architecture."""
    return _DEFAULTS.get(format, "mlm" if architecture == "encoder" else "causal")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients, whatever the model's mode is before and after."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
