import numpy as np
import pytest

from raylm.data.fit import NO_TARGET_LEFT, TOO_LONG, Draft, Encoded, Segment, Span, fit


def tokens(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint32)


def fitted(*segments: Segment, limit: int, truncate: bool = True) -> Encoded:
    draft = Draft(segments, None, True)
    return fit(draft, seq_len=limit, source_len=limit, truncate=truncate)


def test_what_fits_is_left_as_it_is() -> None:
    found = fitted(Segment(tokens(4), ((0, 2), (2, 1))), limit=4, truncate=False)
    assert found.tokens.tolist() == [0, 1, 2, 3]
    assert (found.spans, found.first, found.truncated) == (((0, 2), (2, 1)), 4, False)


def test_what_is_too_long_is_dropped_with_its_length() -> None:
    found = fitted(Segment(tokens(5), ((0, 4),)), limit=4, truncate=False)
    assert (found.reason, found.detail) == (TOO_LONG, "it has 5 tokens, data.seq_len=4")
    assert found.tokens.size == 0


@pytest.mark.parametrize(
    ("limit", "spans"),
    [
        (10, ((1, 3), (6, 3))),
        (9, ((1, 3), (6, 2))),  # position 8 has no next token any more
        (7, ((1, 3),)),
        (5, ((1, 3),)),
        (4, ((1, 2),)),
        (3, ((1, 1),)),
    ],
)
def test_a_cut_takes_the_targets_behind_it(limit: int, spans: tuple[Span, ...]) -> None:
    found = fitted(Segment(tokens(10), ((1, 3), (6, 3))), limit=limit)
    assert found.tokens.tolist() == list(range(limit))
    assert found.spans == spans
    assert all(start + length < limit for start, length in spans)


def test_a_record_without_a_target_left_is_dropped() -> None:
    assert fitted(Segment(tokens(10), ((1, 3),)), limit=2).reason == NO_TARGET_LEFT
    assert fitted(Segment(tokens(3), ()), limit=8).reason == NO_TARGET_LEFT


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ((3, 5), 8, (3, 5)),
        ((3, 9), 8, (3, 5)),  # the short one leaves its room to the long one
        ((9, 3), 8, (5, 3)),
        ((9, 9), 8, (4, 4)),
        ((9, 9), 9, (4, 4)),
        ((4, 9), 9, (4, 5)),
    ],
)
def test_two_segments_share_the_row(
    lengths: tuple[int, int], limit: int, expected: tuple[int, int]
) -> None:
    one, two = (Segment(tokens(n, 100 * k), ((0, n - 1),)) for k, n in enumerate(lengths))
    found = fitted(one, two, limit=limit)
    assert (found.first, len(found.tokens) - found.first) == expected
    assert found.tokens[found.first] == 100
    assert found.spans == ((0, expected[0] - 1), (expected[0], expected[1] - 1))


def test_a_preference_whose_answers_are_cut_to_the_same_is_dropped() -> None:
    one, two = tokens(8), tokens(8)
    two[7] = 99
    spans = ((2, 5),)
    assert fitted(Segment(one, spans), Segment(two, spans), limit=12).reason == NO_TARGET_LEFT
    assert fitted(Segment(one, spans), Segment(two, spans), limit=16).reason is None


def test_special_tokens_at_the_end_stay() -> None:
    assert fitted(Segment(tokens(9), tail=1), limit=4).tokens.tolist() == [0, 1, 2, 8]
    assert fitted(Segment(tokens(9), tail=0), limit=4).tokens.tolist() == [0, 1, 2, 3]


def test_the_sides_of_a_pair_have_limits_of_their_own() -> None:
    draft = Draft((Segment(tokens(4)),), Segment(tokens(9), tail=1), True)
    dropped = fit(draft, seq_len=4, source_len=8, truncate=False)
    assert dropped.detail == "it has 9 tokens, data.source_len=8"
    cut = fit(draft, seq_len=4, source_len=8, truncate=True)
    assert cut.source.tolist() == [*range(7), 8]
    assert (cut.tokens.tolist(), cut.truncated) == ([0, 1, 2, 3], True)
