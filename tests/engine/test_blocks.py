import pytest

from raylm.engine.blocks import BlockManager
from raylm.engine.sequence import new_sequence


def test_blocks_for_rounds_up():
    blocks = BlockManager(8, 4)
    assert [blocks.blocks_for(n) for n in (0, 1, 4, 5, 32)] == [0, 1, 1, 2, 8]


def test_allocate_adds_only_what_is_missing():
    blocks = BlockManager(4, 4)
    sequence = new_sequence("a", range(9))
    assert blocks.allocate(sequence, 5)
    assert list(sequence.blocks) == [0, 1]
    assert blocks.allocate(sequence, 8)
    assert list(sequence.blocks) == [0, 1]
    assert blocks.allocate(sequence, 9)
    assert list(sequence.blocks) == [0, 1, 2]
    assert blocks.num_free == 1


def test_a_refused_allocation_changes_nothing():
    blocks = BlockManager(2, 4)
    sequence = new_sequence("a", range(12))
    assert blocks.allocate(sequence, 4)
    assert not blocks.allocate(sequence, 12)
    assert list(sequence.blocks) == [0]
    assert blocks.num_free == 1


def test_freed_blocks_are_used_again_and_never_shared():
    blocks = BlockManager(4, 2)
    first, second = new_sequence("a", range(4)), new_sequence("b", range(4))
    assert blocks.allocate(first, 4) and blocks.allocate(second, 4)
    assert sorted([*first.blocks, *second.blocks]) == [0, 1, 2, 3]
    blocks.free(first)
    third = new_sequence("c", range(4))
    assert blocks.allocate(third, 4)
    assert list(third.blocks) == [0, 1]
    assert list(first.blocks) == [] and blocks.num_free == 0


def filled(blocks, name, tokens, salt=""):
    """A sequence that has computed all its tokens but for those it found."""
    sequence = new_sequence(name, tokens, salt=salt)
    assert blocks.admit(sequence, num_spare=0)
    blocks.publish(sequence, sequence.num_cached, len(sequence.token_ids))
    return sequence


def found_by(blocks, tokens, salt=""):
    sequence = new_sequence("probe", tokens, salt=salt)
    assert blocks.admit(sequence, num_spare=0)
    num_found = sequence.num_cached
    blocks.free(sequence)
    return num_found


@pytest.mark.parametrize(
    ("num_known", "num_tokens", "expected"),
    [
        (12, 1, 0),
        (12, 4, 0),  # the block of the last token is computed
        (12, 5, 4),
        (12, 12, 8),
        (12, 13, 12),
        (12, 30, 12),
        (11, 30, 8),  # only full blocks are known
        (3, 30, 0),
    ],
)
def test_the_longest_known_beginning_is_taken_over(num_known, num_tokens, expected):
    blocks = BlockManager(20, 4)
    filled(blocks, "a", range(num_known))
    assert found_by(blocks, range(num_tokens)) == expected


def test_a_block_is_known_by_all_tokens_before_it():
    blocks = BlockManager(20, 4)
    filled(blocks, "a", range(12))
    assert found_by(blocks, [9, *range(1, 16)]) == 0
    assert found_by(blocks, [*range(4), 9, *range(5, 16)]) == 4


def test_salts_share_nothing():
    blocks = BlockManager(20, 4)
    filled(blocks, "a", range(12), salt="a")
    assert found_by(blocks, range(12), salt="b") == found_by(blocks, range(12)) == 0
    assert found_by(blocks, range(12), salt="a") == 8
    assert found_by(blocks, range(12), salt="\ud800") == 0  # no text, and no failure either


def test_nothing_is_found_before_it_is_published_or_when_it_is_switched_off():
    blocks = BlockManager(20, 4)
    assert blocks.admit(new_sequence("a", range(12)), num_spare=0)
    assert found_by(blocks, range(12)) == 0
    off = BlockManager(20, 4, prefix_cache=False)
    filled(off, "a", range(12))
    assert found_by(off, range(12)) == 0


def test_shared_blocks_are_counted_once_and_freed_by_the_last():
    blocks = BlockManager(6, 4)
    first = filled(blocks, "a", range(12))
    second = filled(blocks, "b", range(12))
    assert list(first.blocks)[:2] == list(second.blocks)[:2]
    assert first.blocks[2] != second.blocks[2]
    assert blocks.num_used_by([first, second]) == 4 and blocks.num_free == 2
    blocks.free(first)
    assert blocks.num_free == 3
    blocks.free(second)
    assert blocks.num_free == 6


@pytest.mark.parametrize("used_again", [False, True])
@pytest.mark.parametrize(
    ("num_new", "older", "newer"),
    [(1, 12, 12), (2, 8, 12), (3, 4, 12), (4, 0, 12), (5, 0, 8), (7, 0, 0)],
)
def test_cached_blocks_go_when_room_is_needed_the_oldest_and_last_first(
    num_new, older, newer, used_again
):
    first, second = range(12), range(100, 112)

    def left(tokens):
        blocks = BlockManager(7, 4)  # one of them is free
        blocks.free(filled(blocks, "a", first))
        blocks.free(filled(blocks, "b", second))
        if used_again:
            assert found_by(blocks, [*first, 0]) == 12
        new = new_sequence("c", range(200, 200 + 4 * num_new))
        assert blocks.admit(new, num_spare=0)
        blocks.free(new)
        return found_by(blocks, [*tokens, 0])

    left_of = (left(first), left(second))
    assert left_of == ((newer, older) if used_again else (older, newer))


def test_admission_counts_cached_blocks_that_it_takes_over_as_taken():
    blocks = BlockManager(4, 4)
    blocks.free(filled(blocks, "a", range(8)))
    sequence = new_sequence("b", range(16))
    assert not blocks.admit(sequence, num_spare=1)
    assert not sequence.blocks and blocks.num_free == 4
    assert blocks.admit(sequence, num_spare=0)
    assert sequence.num_cached == 8 and blocks.num_free == 0


def test_of_two_that_computed_the_same_the_first_is_found():
    blocks = BlockManager(8, 4)
    pair = [new_sequence(name, range(8)) for name in "ab"]
    for sequence in pair:
        assert blocks.admit(sequence, num_spare=0)
    for sequence in pair:
        blocks.publish(sequence, 0, 8)
    third = filled(blocks, "c", range(9))
    assert list(third.blocks)[:2] == list(pair[0].blocks)
    for sequence in (*pair, third):
        blocks.free(sequence)
    assert blocks.num_free == 8


def test_discarded_blocks_are_found_by_nobody_and_stay_with_those_who_share_them():
    blocks = BlockManager(8, 4)
    first, second = filled(blocks, "a", range(12)), filled(blocks, "b", range(12))
    shared, own = list(second.blocks)[:2], second.blocks[2]
    assert blocks.discard(second) == [own]
    assert list(first.blocks)[:2] == shared and not second.blocks
    assert found_by(blocks, range(13)) == 0
    blocks.free(first)
    assert blocks.num_free == 8
