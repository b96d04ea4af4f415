"""The answers of one vLLM engine, as the step loop drives them.

vLLM steps in a process of its own and goes on by itself; a step here is to take what it has made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from raylm.engine.answer import Answer
from raylm.engine.job import Job
from raylm.engine.protocol import Capabilities, Chunk, TokenLogprob
from raylm.engine.runner import StepResult, deadline_error, joined, taken
from raylm.engine.sampler import Sampled
from raylm.engine.vllm.arguments import sampling_arguments
from raylm.engine.vllm.orphans import Guard
from raylm.errors import RaylmError, RequestError


class Gauges(StatLoggerBase):
    """What vLLM tells of its scheduler with every step."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.num_waiting = 0
        self.cache_usage = 0.0
        self.num_queried_tokens = 0
        self.num_found_tokens = 0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Note the figures of one step."""
        if scheduler_stats is None:
            return
        self.num_waiting = scheduler_stats.num_waiting_reqs
        self.cache_usage = scheduler_stats.kv_cache_usage
        self.num_queried_tokens += scheduler_stats.prefix_cache_stats.queries
        self.num_found_tokens += scheduler_stats.prefix_cache_stats.hits

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class VllmRunner:
    """Implements `Runner`."""

    num_guessed_tokens = 0
    num_confirmed_tokens = 0

    def __init__(
        self,
        engine: Any,
        gauges: Gauges,
        guard: Guard,
        capabilities: Capabilities,
        num_blocks: int,
    ) -> None:
        self._engine = engine
        self._gauges = gauges
        self._guard = guard
        self._capabilities = capabilities
        self.num_blocks = num_blocks
        self._answers: dict[str, Answer] = {}
        self._begun: set[str] = set()
        self._refused: list[tuple[str, RaylmError]] = []

    @property
    def num_running(self) -> int:
        """Answers that vLLM works on."""
        return len(self._answers) - self._num_queued

    @property
    def num_waiting(self) -> int:
        """Those that it does not yet, and refusals that nobody has been told of."""
        return self._num_queued + len(self._refused)

    @property
    def num_free_blocks(self) -> int:
        """As of the last step."""
        return round(self.num_blocks * (1.0 - self._gauges.cache_usage))

    @property
    def num_queried_tokens(self) -> int:
        """Tokens looked up in vLLM's prefix cache."""
        return self._gauges.num_queried_tokens

    @property
    def num_found_tokens(self) -> int:
        """Those of them that were there."""
        return self._gauges.num_found_tokens

    def add(self, job: Job) -> None:
        """Hand an answer to vLLM."""
        assert isinstance(job, Answer), "admission lets no other job pass"
        request = job.request
        told = sampling_arguments(request, self._capabilities, job.max_tokens)
        prompt: dict[str, Any] = {"prompt_token_ids": list(job.token_ids)}
        if request.cache_salt:
            prompt["cache_salt"] = request.cache_salt
        try:
            self._engine.add_request(
                request.id,
                prompt,
                SamplingParams(**told, output_kind=RequestOutputKind.DELTA),
                priority=-request.priority,  # vLLM takes the lowest first
            )
        except EngineDeadError as error:
            raise _dead(error) from error
        except Exception as error:  # of one request; raised here, it would end the engine
            refusal = RequestError(f"vLLM refuses the request: {error}", code="vllm_refused")
            self._refused.append((job.id, refusal))
            return
        self._answers[job.id] = job

    def cancel(self, request_id: str) -> None:
        """Tell vLLM to forget an answer."""
        if self._answers.pop(request_id, None) is not None:
            self._begun.discard(request_id)
            self._engine.abort_request([request_id])

    def step(self, now_s: float) -> StepResult:
        """Wait for what vLLM makes next."""
        failed, self._refused = self._refused, []
        failed += [
            (id, deadline_error(id))
            for id, answer in self._answers.items()
            if id not in self._begun and (answer.request.deadline_s or now_s) < now_s
        ]
        for request_id, _ in failed:
            self.cancel(request_id)
        if failed:  # told before a step can fail
            return StepResult(failed=failed)
        try:
            outputs = self._engine.step()
        except EngineDeadError as error:
            raise _dead(error) from error
        result = StepResult()
        for output in outputs:
            answer = self._answers.get(output.request_id)
            if answer is not None:
                self._take(answer, output, result)
        return result

    def abandon(self) -> list[str]:
        """Which answer is to blame for a step that raised is not known here: all are."""
        lost = list(self._answers)
        with suppress(EngineDeadError):
            self._engine.abort_request(lost)
        self._answers.clear()
        self._begun.clear()
        return lost

    def close(self) -> None:
        """End vLLM's processes."""
        self._answers.clear()
        self._engine.engine_core.shutdown()
        self._guard.close()

    @property
    def _num_queued(self) -> int:
        return min(self._gauges.num_waiting, len(self._answers))

    def _take(self, answer: Answer, output: Any, result: StepResult) -> None:
        """The tokens of one answer since the last step, as one chunk."""
        (made,) = output.outputs
        if answer.id not in self._begun:
            answer.num_cached_tokens = output.num_cached_tokens
            if output.prompt_logprobs:
                answer.note_prompt(_of_prompt(answer, output.prompt_logprobs))
        chunks: list[Chunk] = []
        for index, token_id in enumerate(made.token_ids):
            logprob = _logprob(answer, token_id, made.logprobs[index] if made.logprobs else None)
            chunk = taken(answer, Sampled(token_id, logprob))
            if isinstance(chunk, RaylmError):
                result.failed.append((answer.id, chunk))
                self.cancel(answer.id)
                return
            chunks.append(chunk)
            if chunk.finish_reason is not None:
                break
        if chunks:
            self._begun.add(answer.id)
            result.chunks.append(joined(chunks))
        if chunks and chunks[-1].finish_reason is not None:
            if output.finished:
                self._forget(answer.id)
            else:
                self.cancel(answer.id)
        elif output.finished:
            self._forget(answer.id)
            why = RaylmError(
                f"vLLM ended it early: {made.finish_reason}", code="engine-step-failed"
            )
            result.failed.append((answer.id, why))

    def _forget(self, request_id: str) -> None:
        del self._answers[request_id]
        self._begun.discard(request_id)


def _logprob(answer: Answer, token_id: int, found: Mapping[int, Any] | None) -> TokenLogprob | None:
    num_top = answer.request.sampling.num_logprobs
    return None if found is None or num_top is None else _entry(token_id, found, num_top)


def _of_prompt(answer: Answer, found: Sequence[Mapping[int, Any] | None]) -> list[TokenLogprob]:
    """Logprobs of the prompt's tokens but the first, which nothing comes before."""
    prompt, num_top = answer.request.prompt_ids, answer.request.sampling.num_prompt_logprobs or 0
    return [
        _entry(token_id, entry, num_top)
        for token_id, entry in zip(prompt[1:], found[1:], strict=True)
        if entry is not None
    ]


def _entry(token_id: int, found: Mapping[int, Any], num_top: int) -> TokenLogprob:
    """vLLM has the chosen token among the likeliest; raylm has it apart."""
    ranked = sorted((-entry.logprob, other) for other, entry in found.items())
    top = tuple((other, -negative) for negative, other in ranked[:num_top])
    return TokenLogprob(token_id, float(found[token_id].logprob), top)


def _dead(error: Exception) -> RaylmError:
    return RaylmError(f"vLLM's process is gone: {error}", code="engine-failed")
