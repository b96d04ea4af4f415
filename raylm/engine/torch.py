"""The engine that runs every causal model of transformers: plain dynamic batching.

What waits is taken as one batch, padded on the left, and brought to its end together with
transformers' own key-value cache; rows that finish leave the batch at once, newcomers join
when it is empty. Slower than the OpenVINO engine, and correct for whatever has a
`ForCausalLM`; sampling, text and limits are the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Row
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.answer import Answer
from raylm.engine.decoder import eos_token_ids
from raylm.engine.local import LocalEngine
from raylm.engine.processor import choose_precision, processor_flags
from raylm.engine.protocol import Capabilities, Chunk
from raylm.engine.quantized import stored_precision
from raylm.engine.runner import StepResult, deadline_error
from raylm.engine.sampler import sample
from raylm.engine.weights import open_checkpoint
from raylm.errors import ConfigError, ModelError
from raylm.model.folder import check_folder, tokenizer_files

log = logging.getLogger(__name__)

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(slots=True)
class _Batch:
    """Answers that run together; row i of every tensor belongs to answers[i]."""

    answers: list[Answer]
    next_ids: torch.Tensor  # [rows, tokens] to feed next
    mask: torch.Tensor  # [rows, past + tokens], 0 on the padding
    cache: Any  # transformers.DynamicCache


class BatchRunner:
    """Batches of answers over one transformers model."""

    num_blocks = 0
    num_free_blocks = 0

    def __init__(self, model: Any, config: EngineConfig, *, cache_bytes_per_token: int) -> None:
        self._model = model
        self._max_batch_size = config.max_batch_size
        self._max_batch_tokens = config.max_batch_tokens
        self._max_cached_tokens = config.kv_cache_bytes // cache_bytes_per_token
        self._waiting: list[Answer] = []
        self._batch: _Batch | None = None

    @property
    def num_running(self) -> int:
        """Rows of the current batch."""
        return len(self._batch.answers) if self._batch else 0

    @property
    def num_waiting(self) -> int:
        """Answers for later batches."""
        return len(self._waiting)

    def add(self, answer: Answer) -> None:
        """Queue an answer behind those of its priority."""
        self._waiting.append(answer)
        self._waiting.sort(key=lambda waiting: -waiting.request.priority)  # a stable sort

    def cancel(self, request_id: str) -> None:
        """Take an answer out of the queue or the batch."""
        self._waiting = [answer for answer in self._waiting if answer.id != request_id]
        if self._batch is not None:
            self._keep([answer.id != request_id for answer in self._batch.answers])

    def step(self, now_s: float) -> StepResult:
        """One token for each row; a new batch is begun when there is none."""
        failed = []
        if self._batch is None:
            late = [a for a in self._waiting if (a.request.deadline_s or now_s) < now_s]
            self._waiting = [answer for answer in self._waiting if answer not in late]
            failed = [(answer.id, deadline_error(answer.id)) for answer in late]
            self._begin()
        if self._batch is None:
            return StepResult(failed=failed)
        logits = self._forward(self._batch)
        drawn = sample(logits, [answer.row() for answer in self._batch.answers])
        chunks: list[Chunk] = []
        for answer, sampled in zip(self._batch.answers, drawn, strict=True):
            chunks.append(answer.take(sampled))
        self._batch.next_ids = torch.tensor([[sampled.token_id] for sampled in drawn])
        self._keep([chunk.finish_reason is None for chunk in chunks])
        return StepResult(chunks, failed)

    def abandon(self) -> list[str]:
        """Forget the batch whose step raised."""
        lost = [answer.id for answer in self._batch.answers] if self._batch else []
        self._batch = None
        return lost

    def close(self) -> None:
        """Free the model."""
        self._batch = None
        del self._model

    def _begin(self) -> None:
        """Take as many as fit: rows, prompt tokens, and cache for their longest answers."""
        from transformers import DynamicCache

        count = fitting(
            [(len(answer.token_ids), _total(answer)) for answer in self._waiting],
            max_rows=self._max_batch_size,
            max_tokens=self._max_batch_tokens,
            max_cached_tokens=self._max_cached_tokens,
        )
        if count == 0:
            return
        answers, self._waiting = self._waiting[:count], self._waiting[count:]
        width = max(len(answer.token_ids) for answer in answers)
        ids = np.zeros((count, width), np.int64)
        mask = np.zeros((count, width), np.int64)
        for row, answer in enumerate(answers):
            ids[row, width - len(answer.token_ids) :] = answer.token_ids
            mask[row, width - len(answer.token_ids) :] = 1
        self._batch = _Batch(answers, torch.from_numpy(ids), torch.from_numpy(mask), DynamicCache())

    @torch.inference_mode()
    def _forward(self, batch: _Batch) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        count = batch.next_ids.shape[1]
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)[:, -count:]
        out = self._model(
            input_ids=batch.next_ids,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        batch.cache = out.past_key_values
        batch.mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        logits: np.ndarray[tuple[int, int], np.dtype[np.float32]] = (
            out.logits[:, -1].float().numpy()
        )
        return logits

    def _keep(self, stays: Row[bool]) -> None:
        """Drop the rows that do not stay; an empty batch makes room for the next one."""
        batch = self._batch
        if batch is None or all(stays):
            return
        if not any(stays):
            self._batch = None
            return
        rows = torch.tensor([row for row, stay in enumerate(stays) if stay])
        batch.answers = [batch.answers[row] for row in rows.tolist()]
        batch.next_ids, batch.mask = batch.next_ids[rows], batch.mask[rows]
        batch.cache.batch_select_indices(rows)


def fitting(
    lengths: Row[tuple[int, int]], *, max_rows: int, max_tokens: int, max_cached_tokens: int
) -> int:
    """How many of the first answers, (tokens now, tokens at most), make up a batch.

    All rows are as wide as the widest, so both limits are on rows times width; one row always
    fits.
    """
    count = widest = longest = 0
    for now, at_most in lengths[:max_rows]:
        widest, longest = max(widest, now), max(longest, at_most)
        rows = count + 1
        if count and (rows * widest > max_tokens or rows * longest > max_cached_tokens):
            break
        count = rows
    return count


def load_torch(
    model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
) -> LocalEngine:
    """Start the engine on a Hugging Face folder; nothing is derived, so nothing is cached.

    Raises:
        ModelError: the folder is incomplete, unsafe, or no causal language model.
        ConfigError: the config asks for an 8-bit key-value cache, which this engine lacks.
    """
    if config.kv_cache == "u8":
        raise ConfigError(
            "the torch engine has no 8-bit key-value cache",
            code="unsupported-kv-cache",
            hint="set engine.kv_cache to auto",
        )
    arithmetic = choose_precision(config, processor_flags()).arithmetic
    if config.kv_cache not in ("auto", arithmetic):
        raise ConfigError(
            f"the torch engine keeps keys and values in its arithmetic's type, {arithmetic}",
            code="unsupported-kv-cache",
            hint="set engine.kv_cache to auto",
        )
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = _read_model(model_dir, _DTYPES[arithmetic])
    text_config = model.config.get_text_config()
    per_token = _cache_bytes_per_token(text_config, _DTYPES[arithmetic].itemsize)
    limit = getattr(text_config, "max_position_embeddings", None) or 2**20
    limit = min(limit, config.kv_cache_bytes // per_token)
    log.info("torch: %s, %s arithmetic", type(model).__name__, arithmetic)
    capabilities = Capabilities(
        engine="torch",
        max_context_tokens=min(limit, config.max_context_tokens or limit),
        vocab_size=text_config.vocab_size,
        eos_token_ids=eos_token_ids(model_dir),
        features=frozenset({"generate", "logprobs", "continue", "cancel"}),
        weights=stored_precision(open_checkpoint(model_dir)),
    )
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    runner = BatchRunner(model, config, cache_bytes_per_token=per_token)
    return LocalEngine(runner, tokenizer, capabilities, config)


def _read_model(model_dir: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    check_folder(model_dir)
    tokenizer_files(model_dir)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"transformers cannot load {model_dir} as a causal language model: {error}",
            code="unsupported-architecture",
        ) from error
    return model.eval()


def _cache_bytes_per_token(config: Any, item_bytes: int) -> int:
    """Keys and values of one token in all layers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * item_bytes)


def _total(answer: Answer) -> int:
    return len(answer.request.prompt_ids) + answer.max_tokens
