"""What one forward pass says about each sequence of a packed batch.

Everything is summed per sequence, in float64, so that any split of the work over tasks adds
up to the same figures, and so that intervals can be drawn over sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.config.train import ObjectiveName
from raylm.data.shards import Batch, PackedSplit, token_bytes
from raylm.model.build import load_model
from raylm.model.folder import architecture_of, read_config
from raylm.train.objectives.dpo import answer_log_probs, chosen_alone, num_segments
from raylm.train.objectives.objective import Objective, head_of, objective_for, usual
from raylm.train.source import Source, SpecialTokens


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out split as one kind of model reads it."""

    objective: Objective
    source: Source
    token_bytes: np.ndarray


def objective_of(folder: Path, dataset: Path) -> ObjectiveName:
    """What a model is asked about a dataset: what data and architecture are for."""
    split = PackedSplit.open(dataset, "held_out")
    return usual(split.format, architecture_of(read_config(folder)))


@lru_cache(maxsize=4)
def held_out(folder: Path, dataset: Path) -> HeldOut:
    """The held-out split for the model of a folder."""
    name = objective_of(folder, dataset)
    split = PackedSplit.open(dataset, "held_out")
    # One seed for all models: they are asked for the same hidden tokens.
    source = Source(split, 0, name, SpecialTokens.of(dataset / "tokenizer"))
    return HeldOut(objective_for(name), source, token_bytes(dataset))


@lru_cache(maxsize=4)
def load_for_scoring(folder: Path, dataset: Path) -> Any:
    """The model of a Hugging Face folder, ready to score; kept for the next task."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    head = head_of(objective_of(folder, dataset))
    return load_model(folder, head, dtype="auto").eval()


def sequence_scores(
    model: Any, batch: Batch, objective: Objective, token_bytes: np.ndarray
) -> np.ndarray:
    """[n, 6] per sequence: nats, targets, bytes of the targets, targets ranked first, pairs,
    pairs whose chosen answer is the likelier one. Of pairs, targets are the chosen answers'.
    """
    pairs = np.zeros((2, len(batch.input_ids)))
    with torch.no_grad():
        if objective.name == "dpo":
            pairs = _preferred(model, batch)
            batch = chosen_alone(batch)
        logits, targets, rows = objective.scores(model, batch)
    nll = F.cross_entropy(logits, targets, reduction="none").double()
    hits = logits.argmax(-1) == targets
    num_bytes = np.zeros(len(targets))
    if objective.name != "classify":
        num_bytes = token_bytes[targets.numpy()]
    columns = [nll.numpy(), np.ones(len(targets)), num_bytes, hits.numpy()]
    return np.concatenate([_by_row(columns, rows, batch), pairs.T], axis=1)


def _preferred(model: Any, batch: Batch) -> np.ndarray:
    found = answer_log_probs(model, batch).double().numpy()
    count = num_segments(batch) // 2
    there = np.arange(found.shape[1] // 2) < count[:, None]
    return np.stack([count, ((found[:, 0::2] > found[:, 1::2]) & there).sum(1)])


def sequence_differences(
    candidate: Any, reference: Any, batch: Batch, objective: Objective
) -> np.ndarray:
    """[n, 5] per sequence: targets, KL(reference || candidate) in nats, equal first ranks,
    nats of the candidate, nats of the reference.
    """
    with torch.no_grad():
        mine, targets, rows = objective.scores(candidate, batch)
        theirs = F.log_softmax(objective.scores(reference, batch)[0], -1)
        ours = F.log_softmax(mine, -1)
        kl = (theirs.exp() * (theirs - ours)).sum(-1).double()
        equal = ours.argmax(-1) == theirs.argmax(-1)
        index = targets[:, None]
        nats = [-x.gather(-1, index)[:, 0].double() for x in (ours, theirs)]
    columns = [np.ones(len(rows)), *(c.double().numpy() for c in (kl, equal, *nats))]
    return _by_row(columns, rows, batch)


def _by_row(columns: list[np.ndarray], rows: torch.Tensor, batch: Batch) -> np.ndarray:
    """Columns [t] summed over the targets of each sequence, float64 [n, k]."""
    sums = np.zeros((len(batch.input_ids), len(columns)))
    np.add.at(sums, rows.numpy(), np.stack(columns, axis=1).astype(np.float64))
    return sums
