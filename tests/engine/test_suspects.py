import math

import pytest

from raylm.engine.sequence import new_sequence
from raylm.engine.suspects import Suspects


def search(num, culprits):
    """Steps until nobody is suspected any more: (those found, how many steps failed)."""
    sequences = [new_sequence(str(i), [1]) for i in range(num)]
    suspects, found, num_failed = Suspects(), [], 0
    group = sequences
    while group:
        if any(int(s.id) in culprits for s in group):
            num_failed += 1
            culprit = suspects.accuse(list(group))
            if culprit is not None:
                found.append(int(culprit.id))
        else:
            suspects.acquit(group)
        group = suspects.group
    return found, num_failed


@pytest.mark.parametrize("num", [1, 2, 3, 5, 8, 13, 64])
def test_one_culprit_is_found_within_log2_further_failures(num):
    for culprit in range(num):
        found, num_failed = search(num, {culprit})
        assert found == [culprit]
        assert num_failed <= 1 + math.ceil(math.log2(num))


def test_of_several_culprits_one_is_found_at_a_time():
    assert search(8, {2, 5})[0] == [2]
    assert search(8, {5, 6})[0] == [5]


def test_nobody_is_left_when_all_pass_the_second_time():
    suspects = Suspects()
    sequences = [new_sequence(str(i), [1]) for i in range(5)]
    assert suspects.group == []
    assert suspects.accuse(sequences) is None
    assert suspects.group == sequences[:2]
    suspects.acquit(sequences[:1])
    assert suspects.group == sequences[1:2]
    suspects.acquit([sequences[1], sequences[4]])
    assert suspects.group == sequences[2:4]
    suspects.acquit(sequences)
    assert suspects.group == []
