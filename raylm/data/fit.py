"""A record's tokens against the room in a sequence: dropped, or cut at the end of what is long.

Pure functions. What is cut loses the targets behind the cut; a record with no target left
(or a preference whose answers no longer differ) is left out, however it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

TOO_LONG, NO_TARGET_LEFT = "too-long", "no-target"
Tokens = npt.NDArray[np.uint32]
Span = tuple[int, int]
"""(start, length) of positions whose next token is a target."""
_EMPTY = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that see each other; `spans` None where the loss is not of next tokens here."""

    tokens: Tokens
    spans: tuple[Span, ...] | None = None
    tail: int = 0
    """Special tokens at the end that a cut keeps."""

    def cut(self, limit: int) -> Segment:
        """The first `limit` tokens, the tail among them."""
        if len(self.tokens) <= limit:
            return self
        tail = min(self.tail, limit)
        kept = self.tokens[: limit - tail]
        tokens = np.concatenate([kept, self.tokens[len(self.tokens) - tail :]])
        if self.spans is None:
            return Segment(tokens, None, tail)
        # A target at the place after the last token is gone.
        clipped = [(start, min(length, limit - 1 - start)) for start, length in self.spans]
        return Segment(tokens, tuple((s, n) for s, n in clipped if n > 0), tail)


@dataclass(frozen=True, slots=True)
class Draft:
    """A record as it is, before anything asks how long it may be."""

    segments: tuple[Segment, ...]
    source: Segment | None
    exact: bool
    """The tokens' bytes add up to the text's."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record that fits, or (`reason`) why it is left out."""

    tokens: Tokens = field(default_factory=lambda: _EMPTY)
    source: Tokens = field(default_factory=lambda: _EMPTY)
    first: int = 0
    """Tokens of the first segment."""
    spans: tuple[Span, ...] = ()
    """From the record's first token."""
    exact: bool = True
    truncated: bool = False
    reason: str | None = None
    detail: str = ""


def fit(draft: Draft, *, seq_len: int, source_len: int, truncate: bool) -> Encoded:
    """Make a record fit `seq_len` tokens, its source `source_len`."""
    num_source = len(draft.source.tokens) if draft.source else 0
    num_tokens = sum(len(segment.tokens) for segment in draft.segments)
    long = num_tokens > seq_len or num_source > source_len
    if long and not truncate:
        side = f"data.seq_len={seq_len}"
        if num_tokens <= seq_len:
            num_tokens, side = num_source, f"data.source_len={source_len}"
        return Encoded(reason=TOO_LONG, detail=f"it has {num_tokens} tokens, {side}")
    limit = _limit([len(segment.tokens) for segment in draft.segments], seq_len)
    segments = [segment.cut(limit) for segment in draft.segments]
    if any(segment.spans == () for segment in segments) or _same(segments):
        return Encoded(reason=NO_TARGET_LEFT, detail="there is nothing to learn in what fits")
    first = len(segments[0].tokens)
    begins = (0, first)
    return Encoded(
        tokens=np.concatenate([segment.tokens for segment in segments]),
        source=draft.source.cut(source_len).tokens if draft.source else _EMPTY,
        first=first,
        spans=tuple(
            (begin + start, length)
            for begin, segment in zip(begins, segments, strict=False)
            for start, length in segment.spans or ()
        ),
        exact=draft.exact,
        truncated=long,
    )


def _limit(lengths: list[int], seq_len: int) -> int:
    """Tokens for each of one or two segments: what a short one leaves is for the other."""
    if len(lengths) == 1:
        return seq_len
    return max(seq_len // 2, seq_len - min(lengths))


def _same(segments: list[Segment]) -> bool:
    return len(segments) == 2 and np.array_equal(segments[0].tokens, segments[1].tokens)
