from raylm.engine.sequence import new_sequence


def test_pending_counts_what_is_not_cached():
    sequence = new_sequence("a", [5, 6, 7])
    assert sequence.num_pending == 3
    sequence.num_cached = 3
    sequence.token_ids.append(8)
    assert sequence.num_pending == 1


def test_rank_is_priority_then_arrival():
    early, late, urgent = (new_sequence("x", [1], priority=p) for p in (0, 0, 5))
    early.arrival, late.arrival, urgent.arrival = 0, 1, 2
    assert sorted([late, urgent, early], key=lambda s: s.rank) == [urgent, early, late]
