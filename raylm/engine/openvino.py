"""The CPU engine: continuous batching over OpenVINO's paged attention.

Imports neither torch nor transformers: it starts in about a second from a folder that
`raylm.engine.convert` made, which holds everything it needs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from raylm.config.engine import DraftModel, EngineConfig, PromptLookup
from raylm.engine.answer import Answer
from raylm.engine.batch import token_batch
from raylm.engine.blocks import BlockManager
from raylm.engine.convert import ensure_ir, is_complete
from raylm.engine.draft_folder import draft_ir
from raylm.engine.drafter import Drafter
from raylm.engine.guess import Guesser, Lookup
from raylm.engine.job import Job
from raylm.engine.local import LocalEngine
from raylm.engine.pace import decode_pace
from raylm.engine.paged_model import PagedModel, compile_paged_model, num_blocks_in
from raylm.engine.processor import choose_precision, processor_flags
from raylm.engine.protocol import Capabilities, Chunk
from raylm.engine.runner import StepResult, deadline_error, joined, taken
from raylm.engine.sampler import Floats, sample
from raylm.engine.scheduler import Scheduler, Slice, Step
from raylm.engine.sequence import Sequence, new_sequence
from raylm.engine.speculation import Speculation
from raylm.engine.suspects import Suspects
from raylm.errors import ModelError, RaylmError

log = logging.getLogger(__name__)


class PagedRunner:
    """Scheduler, paged model and sampler, one step at a time.

    `clock` gives seconds, by which speculation tells what its guesses cost.
    """

    def __init__(
        self,
        model: PagedModel,
        config: EngineConfig,
        *,
        draft: PagedModel | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._clock = clock
        self._blocks = BlockManager(
            model.num_blocks, model.block_size, prefix_cache=config.prefix_cache
        )
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_size=config.max_batch_size,
            max_batch_tokens=config.max_batch_tokens,
        )
        self._speculation: Speculation | None = None
        if config.speculation is not None:
            guesser = _guesser(config, draft)
            self._speculation = Speculation(guesser, self._scheduler, self._answer_of)
        self._suspects = Suspects()
        self._answers: dict[str, tuple[Sequence, Answer]] = {}
        self._in_step: list[Sequence] = []

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

    @property
    def num_queried_tokens(self) -> int:
        """Tokens of all sequences when they were first admitted."""
        return self._scheduler.num_queried_tokens

    @property
    def num_found_tokens(self) -> int:
        """Those of them that were in the cache already."""
        return self._scheduler.num_found_tokens

    @property
    def num_guessed_tokens(self) -> int:
        """Tokens that were guessed and computed to find out, so far."""
        return 0 if self._speculation is None else self._speculation.num_guessed_tokens

    @property
    def num_confirmed_tokens(self) -> int:
        """Those of them that were right."""
        return 0 if self._speculation is None else self._speculation.num_confirmed_tokens

    def add(self, job: Job) -> None:
        """Queue an answer."""
        assert isinstance(job, Answer), "the engine only generates"
        answer, request = job, job.request
        sequence = new_sequence(
            answer.id,
            answer.token_ids,
            priority=request.priority,
            deadline_s=request.deadline_s,
            salt=request.cache_salt,
            num_scored=answer.num_scored,
        )
        self._answers[answer.id] = (sequence, answer)
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget an answer and free its blocks."""
        sequence, _ = self._answers.pop(request_id)
        self._scheduler.cancel(sequence)
        self._suspects.acquit([sequence])
        self._forget(request_id)

    def step(self, now_s: float) -> StepResult:
        """Compute one step and sample from it."""
        self._in_step = []
        step = self._scheduler.schedule(now_s, self._suspects.group)
        if step.expired:  # told before a step can fail
            for late in step.expired:
                self.cancel(late.id)
            return StepResult(failed=[(late.id, deadline_error(late.id)) for late in step.expired])
        if not step.slices:
            return StepResult()
        self._in_step = [part.sequence for part in step.slices]
        if self._speculation is not None:
            step = self._speculation.add(step)
        began_s = self._clock()
        logits = self._score(step, self._model.forward(token_batch(step, self._model.block_size)))
        self._scheduler.advance(step)
        drawing = [part for part in step.slices if part.samples]
        for part in drawing:
            self._open(part.sequence)
        result = StepResult()
        for part, items in zip(drawing, self._draw(drawing, logits), strict=True):
            self._tell(part, items, result)
        if self._speculation is not None:
            self._speculation.took(step, self._clock() - began_s)
        return result

    def abandon(self) -> list[str] | None:
        """Compute the sequences of the step that raised anew, apart, until the culprit is known.

        Nothing of that step was emitted, and whatever it wrote is not used again.
        """
        suspects = [sequence for sequence in self._in_step if sequence.id in self._answers]
        if not suspects:
            return []
        self._distrust(suspects)
        culprit = self._suspects.accuse(suspects)
        if culprit is None:
            return None
        self.cancel(culprit.id)
        return [culprit.id]

    def close(self) -> None:
        """Free the model and its cache."""
        self._model.close()
        if self._speculation is not None:
            self._speculation.close()

    def _distrust(self, sequences: list[Sequence]) -> None:
        unused = [block for s in sequences for block in self._scheduler.distrust(s)]
        self._model.scrub(unused)

    def _open(self, sequence: Sequence) -> None:
        """What an answer's first chunk tells of its prompt; were it preempted, that is past."""
        _, answer = self._answers[sequence.id]
        if answer.num_emitted == len(answer.request.emitted_ids):
            answer.num_cached_tokens = min(sequence.num_found or 0, len(answer.request.prompt_ids))
            sequence.num_scored = 0

    def _answer_of(self, sequence: Sequence) -> Answer:
        return self._answers[sequence.id][1]

    def _forget(self, request_id: str) -> None:
        if self._speculation is not None:
            self._speculation.forget(request_id)

    def _draw(self, drawing: list[Slice], logits: Floats) -> list[list[Chunk | RaylmError]]:
        """What each sequence comes to, from its logits: one token more than guesses were right.

        A guess is right if it is the token that is drawn at its place, from logits and position
        alone: the text is that without guesses, greedy or seeded.
        """
        items: list[list[Chunk | RaylmError]] = [[] for _ in drawing]
        begins = np.cumsum([0, *(1 + len(part.guessed) for part in drawing)])
        going, depth = list(range(len(drawing))), 0
        while going:
            answers = [self._answers[drawing[index].sequence.id][1] for index in going]
            rows = begins[going] + depth
            wanted = logits if len(rows) == len(logits) else logits[rows]
            try:
                drawn = sample(wanted, [answer.row() for answer in answers])
            except Exception:
                if depth == 0:
                    raise
                # Some tokens are taken, so this step stands; the next one meets the error again.
                log.exception("sampling failed behind a guessed token")
                break
            for index, answer, sampled in zip(going, answers, drawn, strict=True):
                items[index].append(taken(answer, sampled))
            going = [index for index in going if _goes_on(items[index][-1], drawing[index], depth)]
            depth += 1
        return items

    def _tell(self, part: Slice, items: list[Chunk | RaylmError], result: StepResult) -> None:
        """Note a sequence's tokens, and put its chunk, or its error, into the result."""
        sequence = part.sequence
        _, answer = self._answers[sequence.id]
        self._suspects.acquit([sequence])
        chunks = [item for item in items if isinstance(item, Chunk)]
        if chunks:
            chunk = joined(chunks)
            result.chunks.append(chunk)
            if self._speculation is not None:  # while the tokens are still to come
                self._speculation.note(part, chunk.token_ids)
            sequence.token_ids.extend(chunk.token_ids)
            if chunk.finish_reason is not None:
                self._scheduler.finish(sequence)
                del self._answers[answer.id]
                self._forget(answer.id)
                return
            self._scheduler.confirm(sequence, len(chunks) - 1)
        if isinstance(items[-1], RaylmError):
            result.failed.append((answer.id, items[-1]))
            self._distrust([sequence])
            self.cancel(answer.id)

    def _score(self, step: Step, logits: Floats) -> Floats:
        """Take the rows of prompts that are scored; what is left are the rows to sample from."""
        if not any(part.scores for part in step.slices):
            return logits
        sampled: list[int] = []
        row = 0
        for part in step.slices:
            if part.scores:
                _, answer = self._answers[part.sequence.id]
                answer.score(part.start, logits[row : row + part.count])
                row += part.count - part.samples
            if part.samples:
                sampled.extend(range(row, row + 1 + len(part.guessed)))
                row += 1 + len(part.guessed)
        return logits[sampled]


def _goes_on(item: Chunk | RaylmError, part: Slice, depth: int) -> bool:
    """Whether a sequence's next row of logits is of the token it has just got."""
    if isinstance(item, RaylmError) or item.finish_reason is not None or depth == len(part.guessed):
        return False
    return item.token_ids[0] == part.guessed[depth]


def _guesser(config: EngineConfig, draft: PagedModel | None) -> Guesser:
    settings = config.speculation
    if isinstance(settings, PromptLookup):
        return Lookup(settings)
    assert settings is not None and draft is not None, "open_ir has loaded it"
    return Drafter(draft, num_tokens=settings.num_tokens, max_batch_tokens=config.max_batch_tokens)


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
    ir_dir = model_dir if converted else ensure_ir(model_dir, cache_root, digest)
    if not isinstance(config.speculation, DraftModel):
        return open_ir(ir_dir, config)
    return open_ir(ir_dir, config, draft_dir=draft_ir(config.speculation, ir_dir, cache_root))


def open_ir(ir_dir: Path, config: EngineConfig, *, draft_dir: Path | None = None) -> LocalEngine:
    """Start the engine from a folder that `raylm.engine.convert` made.

    `draft_dir` is another one, of the model that `config.speculation` names.
    """
    facts = _facts(ir_dir)
    precision = choose_precision(config, processor_flags())
    log.info("openvino: %s", precision)
    compiled = [
        compile_paged_model(
            folder / "model.xml",
            config,
            precision,
            sliding_window=_facts(folder)["sliding_window"],
        )
        for folder in (ir_dir, draft_dir)
        if folder is not None
    ]
    # A draft's keys and values lie in blocks of the same numbers.
    num_blocks = num_blocks_in(config.kv_cache_bytes, sum(one.block_bytes for one in compiled))
    model, *drafts = (one.with_cache(num_blocks) for one in compiled)
    tokens_per_cpu_s = decode_pace(model)
    log.info("decodes %.0f tokens a second of processor time", tokens_per_cpu_s)
    limit = min(facts["max_context_tokens"], model.num_blocks * model.block_size)
    capabilities = Capabilities(
        engine="openvino",
        max_context_tokens=min(limit, config.max_context_tokens or limit),
        vocab_size=facts["vocab_size"],
        eos_token_ids=tuple(facts["eos_token_ids"]),
        features=frozenset({"generate", "logprobs", "prompt_logprobs", "continue", "cancel"}),
        weights=facts["weights"],
        tokens_per_cpu_s=tokens_per_cpu_s,
    )
    tokenizer = Tokenizer.from_file(str(ir_dir / "tokenizer.json"))
    runner = PagedRunner(model, config, draft=drafts[0] if drafts else None)
    return LocalEngine(runner, tokenizer, capabilities, config)


def _facts(ir_dir: Path) -> dict[str, Any]:
    if not is_complete(ir_dir):
        raise ModelError(
            f"{ir_dir} is altered or half there", code="damaged-ir", hint="convert the model again"
        )
    facts: dict[str, Any] = json.loads((ir_dir / "engine.json").read_text())
    return facts
