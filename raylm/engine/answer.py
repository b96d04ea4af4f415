"""One answer from request to last chunk: what every engine does with a sampled token."""

from __future__ import annotations

from tokenizers import Tokenizer

from raylm.engine.detokenize import Detokenizer
from raylm.engine.protocol import Capabilities, Chunk, FinishReason, Request
from raylm.engine.sampler import Penalties, Row, Sampled


class Answer:
    """Counts, penalties and text of one answer; a continued one starts where it was left."""

    def __init__(self, request: Request, tokenizer: Tokenizer, capabilities: Capabilities) -> None:
        sampling = request.sampling
        self.request = request
        self.num_emitted = len(request.emitted_ids)
        self._eos = frozenset() if sampling.ignore_eos else frozenset(capabilities.eos_token_ids)
        room = capabilities.max_context_tokens - len(request.prompt_ids)
        self.max_tokens = min(sampling.max_tokens, room)
        self._text = Detokenizer(
            tokenizer,
            request.prompt_ids,
            stop=sampling.stop,
            emitted_ids=[id for id in request.emitted_ids if id not in self._eos],
        )
        self._penalties: Penalties | None = None
        if _penalized(request):
            self._penalties = Penalties(
                capabilities.vocab_size, request.prompt_ids, request.emitted_ids
            )

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and already emitted tokens, from which the model goes on."""
        return self.request.prompt_ids + self.request.emitted_ids

    def row(self) -> Row:
        """How to sample the next token."""
        return Row(self.request.sampling, self.num_emitted, self._penalties)

    def take(self, sampled: Sampled) -> Chunk:
        """Append a token; the chunk has a finish reason if it is the last one."""
        position = self.num_emitted
        self.num_emitted += 1
        token_id = sampled.token_id
        if self._penalties is not None:
            self._penalties.add(token_id)
        ends = token_id in self._eos
        text = "" if ends else self._text.feed(token_id)
        reason = self._reason(ends)
        if reason is not None:
            text += self._text.flush()
        return Chunk(
            self.id,
            position,
            (token_id,),
            text,
            (sampled.logprob,) if sampled.logprob is not None else (),
            reason,
        )

    def ended(self) -> Chunk | None:
        """The last chunk of an answer whose emitted tokens are all there is, else None."""
        emitted = self.request.emitted_ids
        reason = self._reason(bool(emitted) and emitted[-1] in self._eos)
        return None if reason is None else self.close(reason)

    def close(self, reason: FinishReason) -> Chunk:
        """A last chunk without a token."""
        return Chunk(self.id, self.num_emitted, text=self._text.flush(), finish_reason=reason)

    def _reason(self, ends: bool) -> FinishReason | None:
        if ends or self._text.finished:
            return "stop"
        return "length" if self.num_emitted >= self.max_tokens else None


def _penalized(request: Request) -> bool:
    sampling = request.sampling
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )
