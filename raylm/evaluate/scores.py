"""What one forward pass says about each sequence of a packed batch.

Everything is summed per sequence, in float64, so that any split of the work over tasks adds
up to the same figures, and so that intervals can be drawn over sequences.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.data.shards import Batch
from raylm.train.objective import next_token_logits


@lru_cache(maxsize=4)
def load_for_scoring(folder: Path) -> Any:
    """A causal model of a Hugging Face folder, ready to score; kept for the next task."""
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True
    )
    return model.eval()


def sequence_scores(model: Any, batch: Batch, token_bytes: np.ndarray) -> np.ndarray:
    """[n, 4] per sequence: nats, targets, bytes of the targets, targets ranked first."""
    with torch.no_grad():
        logits = next_token_logits(model, batch, mask_documents=True).float()
        targets = torch.from_numpy(batch.targets)
        nll = F.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
        ).double()
        hits = (logits.argmax(-1) == targets).sum(1)
    known = batch.targets >= 0
    num_bytes = np.where(known, token_bytes[np.maximum(batch.targets, 0)], 0).sum(1)
    columns = [nll.sum(1).numpy(), known.sum(1), num_bytes, hits.numpy()]
    return np.stack(columns, axis=1).astype(np.float64)


def sequence_differences(candidate: Any, reference: Any, batch: Batch) -> np.ndarray:
    """[n, 5] per sequence: targets, KL(reference || candidate) in nats, equal first ranks,
    nats of the candidate, nats of the reference.
    """
    with torch.no_grad():
        ours = F.log_softmax(next_token_logits(candidate, batch, mask_documents=True).float(), -1)
        theirs = F.log_softmax(next_token_logits(reference, batch, mask_documents=True).float(), -1)
        known = torch.from_numpy(batch.targets >= 0)
        index = torch.from_numpy(np.maximum(batch.targets, 0))[..., None]
        kl = (theirs.exp() * (theirs - ours)).sum(-1).double() * known
        equal = (ours.argmax(-1) == theirs.argmax(-1)) & known
        nats = [-(x.gather(-1, index)[..., 0].double() * known).sum(1) for x in (ours, theirs)]
    columns = [known.sum(1), kl.sum(1), equal.sum(1), *nats]
    return torch.stack([c.double() for c in columns], dim=1).numpy()
