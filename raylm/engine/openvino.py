"""The CPU engine: continuous batching over OpenVINO's paged attention.

Imports neither torch nor transformers: it starts in about a second from a folder that
`raylm.engine.convert` made, which holds everything it needs.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.answer import Answer
from raylm.engine.blocks import BlockManager
from raylm.engine.convert import ensure_ir, is_complete
from raylm.engine.local import LocalEngine
from raylm.engine.paged_model import PagedModel, TokenBatch, load_paged_model
from raylm.engine.processor import choose_precision, processor_flags
from raylm.engine.protocol import Capabilities
from raylm.engine.runner import StepResult, deadline_error
from raylm.engine.sampler import sample
from raylm.engine.scheduler import Scheduler, Slice, Step
from raylm.engine.sequence import Sequence, new_sequence
from raylm.errors import ModelError

log = logging.getLogger(__name__)


class PagedRunner:
    """Scheduler, paged model and sampler, one step at a time."""

    def __init__(self, model: PagedModel, config: EngineConfig) -> None:
        self._model = model
        self._blocks = BlockManager(model.num_blocks, model.block_size)
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_size=config.max_batch_size,
            max_batch_tokens=config.max_batch_tokens,
        )
        self._answers: dict[str, tuple[Sequence, Answer]] = {}
        self._in_step: list[str] = []

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    @property
    def num_blocks(self) -> int:
        """Blocks of the key-value cache."""
        return self._blocks.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody uses."""
        return self._blocks.num_free

    @property
    def num_preempted(self) -> int:
        """Sequences that gave their blocks back and were computed anew, so far."""
        return self._scheduler.num_preempted

    def add(self, answer: Answer) -> None:
        """Queue an answer."""
        request = answer.request
        sequence = new_sequence(
            answer.id, answer.token_ids, priority=request.priority, deadline_s=request.deadline_s
        )
        self._answers[answer.id] = (sequence, answer)
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget an answer and free its blocks."""
        sequence, _ = self._answers.pop(request_id)
        self._scheduler.cancel(sequence)

    def step(self, now_s: float) -> StepResult:
        """Compute one step and sample from it."""
        self._in_step = []
        step = self._scheduler.schedule(now_s)
        self._in_step = [part.sequence.id for part in step.slices]
        failed = [(late.id, deadline_error(late.id)) for late in step.expired]
        for request_id, _ in failed:
            del self._answers[request_id]
        if not step.slices:
            return StepResult(failed=failed)
        logits = self._model.forward(token_batch(step, self._model.block_size))
        self._scheduler.advance(step)
        drawing = [self._answers[part.sequence.id] for part in step.slices if part.samples]
        drawn = sample(logits, [answer.row() for _, answer in drawing])
        chunks = []
        for (sequence, answer), sampled in zip(drawing, drawn, strict=True):
            chunk = answer.take(sampled)
            chunks.append(chunk)
            sequence.token_ids.append(sampled.token_id)
            if chunk.finish_reason is not None:
                self._scheduler.finish(sequence)
                del self._answers[answer.id]
        return StepResult(chunks, failed)

    def abandon(self) -> list[str]:
        """Forget the answers of the step that raised."""
        lost = [request_id for request_id in self._in_step if request_id in self._answers]
        for request_id in lost:
            self.cancel(request_id)
        return lost

    def close(self) -> None:
        """Free the model and its cache."""
        self._model.close()


def token_batch(step: Step, block_size: int) -> TokenBatch:
    """The arrays of one step, in the order of its slices."""
    parts = step.slices
    counts = np.array([part.count for part in parts], np.int32)
    past = np.array([part.start for part in parts], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    num_blocks = -(-(past + counts) // block_size)
    return TokenBatch(
        token_ids=np.concatenate([_token_ids(part) for part in parts]),
        position_ids=np.arange(ends[-1]) + np.repeat(past - (ends - counts), counts),
        past_lens=past,
        subsequence_begins=_begins(counts),
        block_indices=np.concatenate(
            [
                np.frombuffer(part.sequence.blocks, np.int32, count)
                for part, count in zip(parts, num_blocks, strict=True)
            ]
        ),
        block_indices_begins=_begins(num_blocks),
        max_context_len=int((past + counts).max()),
        rows=(ends - 1)[[part.samples for part in parts]].astype(np.int64),
    )


def load_openvino(
    model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
) -> LocalEngine:
    """Start the engine from a model folder, converted first if that was not done yet.

    `model_dir` may be a converted folder itself.

    Raises:
        ModelError: the model cannot be converted.
        ConfigError: the key-value cache has no room for a single block.
    """
    converted = (model_dir / "engine.json").is_file()
    return open_ir(model_dir if converted else ensure_ir(model_dir, cache_root, digest), config)


def open_ir(ir_dir: Path, config: EngineConfig) -> LocalEngine:
    """Start the engine from a folder that `raylm.engine.convert` made."""
    if not is_complete(ir_dir):
        raise ModelError(
            f"{ir_dir} is altered or half there", code="damaged-ir", hint="convert the model again"
        )
    facts = json.loads((ir_dir / "engine.json").read_text())
    precision = choose_precision(config, processor_flags())
    log.info("openvino: %s arithmetic, %s cache", precision.arithmetic, precision.kv_cache)
    model = load_paged_model(
        ir_dir / "model.xml", config, precision, sliding_window=facts["sliding_window"]
    )
    limit = min(facts["max_context_tokens"], model.num_blocks * model.block_size)
    capabilities = Capabilities(
        engine="openvino",
        max_context_tokens=min(limit, config.max_context_tokens or limit),
        vocab_size=facts["vocab_size"],
        eos_token_ids=tuple(facts["eos_token_ids"]),
        features=frozenset({"generate", "logprobs", "continue", "cancel"}),
        weights=facts["weights"],
    )
    tokenizer = Tokenizer.from_file(str(ir_dir / "tokenizer.json"))
    return LocalEngine(PagedRunner(model, config), tokenizer, capabilities, config)


def _token_ids(part: Slice) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    # Eight bytes a token; the copy made from this view lets the array grow again.
    return np.frombuffer(part.sequence.token_ids, np.int64, part.count, 8 * part.start)


def _begins(
    counts: np.ndarray[tuple[int], np.dtype[np.int32]],
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    return begins
