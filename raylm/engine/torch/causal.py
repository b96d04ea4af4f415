"""The rows of a batch of a causal model: padded on the left, with transformers' own cache."""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import Any

import torch
from transformers import DynamicCache

from raylm.engine.answer import Answer
from raylm.engine.torch.batches import Floats
from raylm.engine.torch.padding import left_padded


class CausalRows:
    """Prompts and answers so far of a batch; see `Rows`."""

    def __init__(self, model: Any, answers: Row[Answer]) -> None:
        self._model = model
        self._next_ids, self._mask = left_padded([answer.token_ids for answer in answers])
        self._cache: Any = DynamicCache()

    @torch.inference_mode()
    def logits(self) -> Floats:
        """Logits of the next tokens [rows, vocab]."""
        count = self._next_ids.shape[1]
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -count:]
        out = self._model(
            input_ids=self._next_ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        logits: Floats = out.logits[:, -1].float().numpy()
        return logits

    def feed(self, token_ids: list[int]) -> None:
        """Give each row its next token."""
        self._next_ids = torch.tensor(token_ids)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Forget the other rows."""
        kept = torch.tensor(rows)
        self._next_ids, self._mask = self._next_ids[kept], self._mask[kept]
        self._cache.batch_select_indices(kept)
