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
