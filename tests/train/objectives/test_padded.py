import numpy as np

from raylm.data.shards import NO_TARGET
from raylm.train.objectives.padded import padded, segment_ranges
from tests.train.packing import pack, pack_pairs


def test_segments_are_found_in_full_and_in_padded_rows() -> None:
    rows, starts, lengths = segment_ranges(np.array([[1, 1, 2, 0], [1, 2, 2, 2]], np.int32))
    assert rows.tolist() == [0, 0, 1, 1]
    assert starts.tolist() == [0, 2, 0, 1]
    assert lengths.tolist() == [2, 1, 1, 3]


def test_every_segment_becomes_a_row() -> None:
    batch, origin = padded(pack([[[7, 8], [9, 10, 11]], [[12]]], 6), 3)
    assert batch.input_ids.tolist() == [[7, 8, 3], [9, 10, 11], [12, 3, 3]]
    assert batch.segment_ids.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 0], [0, 1, 2], [0, 0, 0]]
    no = NO_TARGET
    assert batch.targets.tolist() == [[8, no, no], [10, 11, no], [no, no, no]]
    assert origin.tolist() == [0, 0, 1]


def test_sources_stay_with_their_targets() -> None:
    packed = pack_pairs([[[5, 6], [7]], [[8]]], [[[9], [10, 11]], [[12, 13]]], 5)
    batch, _ = padded(packed, 3)
    assert batch.source is not None
    assert batch.source.input_ids.tolist() == [[5, 6], [7, 3], [8, 3]]
    assert batch.targets.tolist() == [[9, NO_TARGET], [10, 11], [12, 13]]
