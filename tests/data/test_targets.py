import numpy as np

from raylm.data.targets import NO_TARGET, SPAN, by_segment, of_next_tokens, of_spans, shifted_right

NO = NO_TARGET
IDS = np.array([[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 10, 11]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 3, 3]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 1]])


def test_next_tokens_stay_in_their_segment() -> None:
    expected = [[2, 3, NO, 5, NO, NO], [7, NO, 9, NO, 11, NO]]
    assert of_next_tokens(IDS, SEGMENTS).tolist() == expected


def test_spans_say_where_the_next_token_counts() -> None:
    spans = np.array([(1, 1), (3, 1), (0, 1), (2, 0)], SPAN)
    found = of_spans(IDS, spans, np.array([2, 2]))
    assert found.tolist() == [[NO, 3, NO, 5, NO, NO], [7, NO, NO, NO, NO, NO]]
    assert (of_spans(IDS, spans[:0], np.array([0, 0])) == NO).all()


def test_a_decoder_reads_what_it_said_before() -> None:
    found = shifted_right(IDS, SEGMENTS, POSITIONS, 99)
    assert found.tolist() == [[99, 1, 2, 99, 4, 0], [99, 6, 99, 8, 99, 10]]


def test_labels_are_a_matrix_over_segments() -> None:
    found = by_segment(np.array([4, 5, 6, 7], np.int32), np.array([1, 3]))
    assert found.tolist() == [[4, NO, NO], [5, 6, 7]]
    assert found.dtype == np.int64
    assert by_segment(np.zeros(0, np.int32), np.zeros(0, np.int64)).shape == (0, 0)
