"""One answer from request to last chunk: what every engine does with a sampled token."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer

from raylm.engine.detokenize import Detokenizer
from raylm.engine.grammar import Matcher
from raylm.engine.protocol import Capabilities, Chunk, FinishReason, Request, TokenLogprob
from raylm.engine.sampler import Bias, Floats, Penalties, Row, Sampled, token_logprob
from raylm.errors import RequestError


class Answer:
    """Counts, penalties, grammar and text of one answer; a continued one starts where it was left.

    `matcher` has already taken the emitted tokens.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        capabilities: Capabilities,
        matcher: Matcher | None = None,
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.num_emitted = len(request.emitted_ids)
        self.failure: RequestError | None = None
        """Why the answer could not go on, after a chunk that says `cancelled`."""
        self._matcher = matcher
        self._eos_ids = capabilities.eos_token_ids
        self._eos = frozenset() if sampling.ignore_eos else frozenset(capabilities.eos_token_ids)
        room = capabilities.answer_room(len(request.prompt_ids))
        self.max_tokens = min(sampling.max_tokens, room)
        self.num_cached_tokens: int | None = None
        """Prompt tokens that were in the cache; the runner's to set, before the first token."""
        self._wants_prompt = sampling.num_prompt_logprobs is not None and not request.emitted_ids
        self._prompt_logprobs: list[TokenLogprob | None] = [None] if self._wants_prompt else []
        # An encoder-decoder's answer is a text of its own, which no prompt stands before.
        before = request.prompt_ids if capabilities.max_answer_tokens is None else ()
        self._text = Detokenizer(
            tokenizer,
            before,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            emitted_ids=[id for id in request.emitted_ids if id not in self._eos],
        )
        self._bias = Bias(sampling.logit_bias) if sampling.logit_bias else None
        self._penalties: Penalties | None = None
        if _penalized(request):
            self._penalties = Penalties(capabilities.vocab_size, before, request.emitted_ids)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and already emitted tokens, from which the model goes on."""
        return self.request.prompt_ids + self.request.emitted_ids

    @property
    def num_left(self) -> int:
        """Tokens that it may still get."""
        return self.max_tokens - self.num_emitted

    @property
    def num_scored(self) -> int:
        """Leading tokens of the prompt whose logits are wanted, for the token after each."""
        return len(self.request.prompt_ids) - 1 if self._wants_prompt else 0

    def score(self, start: int, logits: Floats) -> None:
        """Note logprobs of the prompt, from the logits [tokens, vocab] of those from `start` on.

        The prompt comes in pieces, in order; a piece that comes again is passed over.
        """
        prompt, num_top = self.request.prompt_ids, self.request.sampling.num_prompt_logprobs
        for position, row in enumerate(logits, start + 1):
            if len(self._prompt_logprobs) <= position < len(prompt):
                entry = token_logprob(row, prompt[position], num_top or 0)
                self._prompt_logprobs.append(entry)

    def note_prompt(self, entries: Iterable[TokenLogprob]) -> None:
        """Note logprobs of the prompt that an engine has worked out itself, from its second token
        on; before the first token of the answer."""
        self._prompt_logprobs.extend(entries)

    def row(self) -> Row:
        """How to sample the next token."""
        return Row(
            self.request.sampling,
            self.num_emitted,
            self._penalties,
            self._bias,
            self._banned_ids(),
            None if self._matcher is None else self._matcher.allowed,
        )

    def take(self, sampled: Sampled) -> Chunk:
        """Append a token; the chunk has a finish reason if it is the last one."""
        position = self.num_emitted
        self.num_emitted += 1
        token_id = sampled.token_id
        if self._penalties is not None:
            self._penalties.add(token_id)
        ends = token_id in self._eos
        text = "" if ends else self._text.feed(token_id)
        self._follow(token_id)
        reason = self._reason(ends)
        if reason is not None:
            text += self._text.flush()
        num_cached, self.num_cached_tokens = self.num_cached_tokens, None
        of_prompt, self._prompt_logprobs = self._prompt_logprobs, []
        return Chunk(
            self.id,
            position,
            (token_id,),
            text,
            (sampled.logprob,) if sampled.logprob is not None else (),
            reason,
            num_cached,
            tuple(of_prompt),
        )

    def ended(self) -> Chunk | None:
        """The last chunk of an answer whose emitted tokens are all there is, else None."""
        emitted = self.request.emitted_ids
        reason = self._reason(bool(emitted) and emitted[-1] in self._eos)
        return None if reason is None else self.close(reason)

    def close(self, reason: FinishReason) -> Chunk:
        """A last chunk without a token."""
        return Chunk(self.id, self.num_emitted, text=self._text.flush(), finish_reason=reason)

    def _follow(self, token_id: int) -> None:
        if self._matcher is None:
            return
        try:
            self._matcher.advance(token_id)
        except RequestError as error:
            # Raised here, it would end the step and with it the answers of others.
            self.failure = error

    def _banned_ids(self) -> tuple[int, ...]:
        sampling = self.request.sampling
        if sampling.ignore_eos:
            # Where a grammar is followed, an end token is more than one that is ignored.
            return self._eos_ids if self._matcher is not None else ()
        return self._eos_ids if self.num_emitted < sampling.min_tokens else ()

    def _reason(self, ends: bool) -> FinishReason | None:
        if self.failure is not None:
            return "cancelled"
        complete = self._matcher is not None and self._matcher.is_complete
        if ends or complete or self._text.finished:
            return "stop"
        return "length" if self.num_emitted >= self.max_tokens else None


def _penalized(request: Request) -> bool:
    sampling = request.sampling
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )
