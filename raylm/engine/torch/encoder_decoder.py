"""The rows of a batch of an encoder-decoder: the encoder runs once, the decoder token by token.

The prompt is the encoder's input; the answer is the decoder's, after its start token. Rows of a
continued answer begin further on than those of a new one, so the decoder's side is padded on
the left: with relative positions (T5, arXiv:1910.10683) that changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from raylm.engine.answer import Answer
from raylm.engine.torch.batches import Floats
from raylm.engine.torch.padding import left_padded, right_padded


class EncoderDecoderRows:
    """Encoded prompts and answers so far of a batch; see `Rows`."""

    def __init__(self, model: Any, start_id: int, answers: Row[Answer]) -> None:
        self._model = model
        self._prompt_ids, self._prompt_mask = right_padded(
            [answer.request.prompt_ids for answer in answers]
        )
        self._states: torch.Tensor | None = None
        self._next_ids, self._mask = left_padded(
            [(start_id, *answer.request.emitted_ids) for answer in answers]
        )
        # Of the decoder's own tokens, and of the encoder's states, which are projected once.
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @torch.inference_mode()
    def logits(self) -> Floats:
        """Logits of the next tokens [rows, vocab]."""
        if self._states is None:
            self._states = self._encoded()
        if self._next_ids.shape[1] > 1:
            # T5's head has no way to leave out the tokens before the last.
            self._model.get_decoder()(
                input_ids=self._next_ids[:, :-1],
                attention_mask=self._mask[:, :-1],
                encoder_hidden_states=self._states,
                encoder_attention_mask=self._prompt_mask,
                past_key_values=self._cache,
                use_cache=True,
            )
        out = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._prompt_mask,
            decoder_input_ids=self._next_ids[:, -1:],
            decoder_attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Floats = out.logits[:, -1].float().numpy()
        return logits

    def feed(self, token_ids: list[int]) -> None:
        """Give each row its next token."""
        self._next_ids = torch.tensor(token_ids)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Forget the other rows."""
        kept = torch.tensor(rows)
        if self._states is not None:
            self._states = self._states[kept]
        self._prompt_ids, self._prompt_mask = self._prompt_ids[kept], self._prompt_mask[kept]
        self._next_ids, self._mask = self._next_ids[kept], self._mask[kept]
        self._cache.batch_select_indices(kept)

    def _encoded(self) -> torch.Tensor:
        """The encoder's last states [rows, prompt tokens, size]."""
        out = self._model.get_encoder()(
            input_ids=self._prompt_ids, attention_mask=self._prompt_mask
        )
        states: torch.Tensor = out.last_hidden_state
        return states
