"""Tokens in, text out, piece by piece: whole characters only, and never past a stop string.

The state after some tokens depends on those tokens alone. To continue an answer elsewhere,
the emitted tokens are fed again and their text thrown away: what was held back at that point
is then held back here too, and comes out with what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

_CONTEXT_TOKENS = 6  # of the prompt; a leading space depends on what stood before it
_MAX_UNSETTLED_TOKENS = 64  # bytes that never become characters must not pile up for ever
_REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are no character (yet)


class Detokenizer:
    """The text of one answer. `finished` is set once a stop string was met.

    Those that are complete before `min_tokens` tokens are text like any other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        emitted_ids: Iterable[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._num_before_stop = min_tokens
        # The settled tokens before the unsettled ones: decoders look at what came before.
        self._context = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._num_context_chars = len(self._decode(self._context))
        self._unsettled: list[int] = []
        self._held = ""
        self.finished = False
        for token_id in emitted_ids:
            self.feed(token_id)

    def feed(self, token_id: int) -> str:
        """The text that one more token settles; may be empty.

        A token that completes a stop string gives the text before it and sets `finished`.
        """
        if self.finished:
            return ""
        self._unsettled.append(token_id)
        self._num_before_stop -= 1
        return self._release(self._held + self._settle())

    def flush(self) -> str:
        """The rest, when no token follows: held text, and half characters as U+FFFD."""
        if self.finished:
            return ""
        text = self._held + self._decode(self._context + self._unsettled)[self._num_context_chars :]
        self._context, self._num_context_chars = [], 0
        self._unsettled, self._held = [], ""
        text, self.finished = self._cut(text)
        return text

    def _settle(self) -> str:
        """The text of the unsettled tokens, once it ends with a whole character."""
        text = self._decode(self._context + self._unsettled)
        if text.endswith(_REPLACEMENT) and len(self._unsettled) < _MAX_UNSETTLED_TOKENS:
            return ""
        new = text[self._num_context_chars :]
        self._context, self._unsettled = self._unsettled, []
        self._num_context_chars = len(self._decode(self._context))
        return new

    def _release(self, text: str) -> str:
        """Give out what cannot be part of a stop string any more; hold the rest."""
        text, self.finished = self._cut(text)
        keep = 0 if self.finished else max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        if self._num_before_stop > 0:
            return text, False
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
