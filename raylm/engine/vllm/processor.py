"""KeyedDraw: raylm's sampler as a logits processor of vLLM's.

Loaded by vLLM in the process that samples. Rows that it draws leave with all logits at minus
infinity but one, so that vLLM, told to be greedy, takes that one. Its logprobs are of the model's
own logits, which it has read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from raylm.engine.sampler import Sampled, sample
from raylm.engine.vllm.draw import ORDER, Draw


class KeyedDraw(LogitsProcessor):
    """Follows vLLM's batch: which of its rows are drawn here."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._draws: dict[int, tuple[Draw, Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: greedy rows pass through it too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows that came, went and moved, in the order that vLLM documents."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._draws.pop(index, None)
        for index, params, prompt_ids, output_ids in batch_update.added:
            self._draws.pop(index, None)  # an added row may take the place of another
            order = (params.extra_args or {}).get(ORDER)
            if order is not None:
                self._draws[index] = (Draw(order, prompt_ids or []), output_ids)
        for source, target, way in batch_update.moved:
            moved, replaced = self._draws.pop(source, None), self._draws.pop(target, None)
            if moved is not None:
                self._draws[target] = moved
            if replaced is not None and way == MoveDirectionality.SWAP:
                self._draws[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the rows that have an order, of `logits` [rows, vocab]; the others stay."""
        indices = sorted(index for index in self._draws if index < logits.shape[0])
        if not indices:
            return logits
        rows = []
        for index in indices:
            draw, output_ids = self._draws[index]
            rows.append(draw.row(output_ids))
        drawn = sample(logits[indices].float().cpu().numpy(), rows)
        for index, chosen in zip(indices, drawn, strict=True):
            if isinstance(chosen, Sampled):  # else not a number: nothing to choose from
                logits[index] = float("-inf")
                logits[index, chosen.token_id] = 0.0
        return logits
