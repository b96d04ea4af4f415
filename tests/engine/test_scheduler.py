import random

import pytest

from raylm.engine.blocks import BlockManager
from raylm.engine.scheduler import Scheduler
from raylm.engine.sequence import new_sequence


def make(num_blocks=100, block_size=4, max_batch_size=8, max_batch_tokens=64):
    return Scheduler(
        BlockManager(num_blocks, block_size),
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
    )


def run(scheduler, now_s=0.0):
    """One step, sampling a token wherever one is due: {id: (start, count, samples)}."""
    step = scheduler.schedule(now_s)
    shape = {s.sequence.id: (s.start, s.count, s.samples) for s in step.slices}
    sampling = [part.sequence for part in step.slices if part.samples]
    scheduler.advance(step)
    for sequence in sampling:
        sequence.token_ids.append(0)
    return shape


def test_a_newcomer_is_prefilled_while_others_decode():
    scheduler = make()
    scheduler.add(new_sequence("a", range(5)))
    assert run(scheduler) == {"a": (0, 5, True)}
    scheduler.add(new_sequence("b", range(3)))
    assert run(scheduler) == {"a": (5, 1, True), "b": (0, 3, True)}
    assert run(scheduler) == {"a": (6, 1, True), "b": (3, 1, True)}


def test_a_long_prompt_is_cut_in_chunks_and_decoding_goes_first():
    scheduler = make(max_batch_tokens=16)
    scheduler.add(new_sequence("a", range(4)))
    run(scheduler)
    scheduler.add(new_sequence("b", range(40)))
    assert run(scheduler) == {"a": (4, 1, True), "b": (0, 15, False)}
    assert run(scheduler) == {"a": (5, 1, True), "b": (15, 15, False)}
    assert run(scheduler) == {"a": (6, 1, True), "b": (30, 10, True)}
    assert run(scheduler) == {"a": (7, 1, True), "b": (40, 1, True)}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_batch_size": 2}, ["a", "b"]),
        ({"max_batch_tokens": 10}, ["a", "b", "c"]),
        ({"max_batch_tokens": 8}, ["a", "b"]),
        ({"num_blocks": 2}, ["a", "b"]),  # a block each; the third has to wait
    ],
)
def test_each_limit_bounds_the_step(limits, expected):
    scheduler = make(**limits)
    for name in "abc":
        scheduler.add(new_sequence(name, range(4)))
    if "num_blocks" in limits:
        scheduler.blocks = BlockManager(4, 4)  # one spare for each that is running
    step = scheduler.schedule(0.0)
    assert [part.sequence.id for part in step.slices] == expected
    assert sum(part.count for part in step.slices) <= scheduler.max_batch_tokens


def test_first_come_first_served_within_priority():
    scheduler = make(max_batch_size=2)
    for name, priority in (("a", 0), ("b", 0), ("c", 3), ("d", 3)):
        scheduler.add(new_sequence(name, range(4), priority=priority))
    assert list(run(scheduler)) == ["c", "d"]
    for name in "cd":
        scheduler.finish(next(s for s in scheduler.running if s.id == name))
    assert list(run(scheduler)) == ["a", "b"]


def test_the_youngest_is_preempted_when_blocks_run_out_and_computed_anew():
    scheduler = make(num_blocks=5, block_size=4)
    for name, length in (("a", 4), ("b", 7)):
        scheduler.add(new_sequence(name, range(length)))
    assert run(scheduler) == {"a": (0, 4, True), "b": (0, 7, True)}
    for _ in range(4):  # a: 8, b: 11 cached; 2 + 3 blocks are taken
        run(scheduler)
    assert scheduler.blocks.num_free == 0
    assert run(scheduler) == {"a": (8, 1, True)}
    youngest = scheduler.waiting[0]
    assert youngest.id == "b" and youngest.num_cached == 0 and not youngest.blocks
    assert scheduler.num_preempted == 1
    scheduler.finish(scheduler.running[0])
    assert run(scheduler) == {"b": (0, 12, True)}


def test_one_that_has_lower_priority_is_preempted_before_one_that_came_later():
    scheduler = make(num_blocks=4, block_size=4)
    scheduler.add(new_sequence("low", range(4), priority=0))
    scheduler.add(new_sequence("high", range(4), priority=1))
    run(scheduler)
    for _ in range(4):
        run(scheduler)
    assert scheduler.blocks.num_free == 0
    for _ in range(4):
        run(scheduler)
    assert [s.id for s in scheduler.running] == ["high"]
    assert [s.id for s in scheduler.waiting] == ["low"]


def test_a_newcomer_leaves_each_running_sequence_its_next_block():
    scheduler = make(num_blocks=3, block_size=4)
    scheduler.add(new_sequence("a", range(4)))
    run(scheduler)
    scheduler.add(new_sequence("b", range(8)))
    assert list(run(scheduler)) == ["a"]
    assert scheduler.num_preempted == 0


def test_a_deadline_that_passes_while_waiting_drops_the_request():
    scheduler = make(max_batch_size=1)
    scheduler.add(new_sequence("a", range(4), deadline_s=10.0))
    scheduler.add(new_sequence("b", range(4), deadline_s=10.0))
    scheduler.add(new_sequence("c", range(4)))
    assert scheduler.schedule(9.0).expired == []
    step = scheduler.schedule(11.0)
    assert [late.id for late in step.expired] == ["b"]  # a runs already
    assert [s.id for s in scheduler.waiting] == ["c"]


def test_cancel_frees_blocks_wherever_the_sequence_is():
    scheduler = make(num_blocks=4, max_batch_size=1)
    running, waiting = new_sequence("a", range(8)), new_sequence("b", range(8))
    scheduler.add(running)
    scheduler.add(waiting)
    run(scheduler)
    assert scheduler.blocks.num_free == 2
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    scheduler.cancel(running)
    assert scheduler.blocks.num_free == 4
    assert not scheduler.running and not scheduler.waiting


def test_every_running_sequence_decodes_in_every_step():
    scheduler = make(max_batch_size=64, max_batch_tokens=16)
    for index in range(40):
        scheduler.add(new_sequence(str(index), [1]))
    for _ in range(5):
        run(scheduler)
    assert len(run(scheduler)) == 16


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_keeps_every_invariant(seed):
    """Blocks are never shared or lost, budgets hold, everything finishes, cache is gapless."""
    rng = random.Random(seed)
    num_blocks, block_size = rng.randint(8, 30), rng.choice([1, 4, 16])
    scheduler = make(num_blocks, block_size, rng.randint(1, 6), rng.randint(6, 40))
    longest = num_blocks * block_size
    goals, born = {}, 0
    for _ in range(3000):
        if born < 30 and rng.random() < 0.4:
            length = rng.randint(1, max(1, longest // 2))
            scheduler.add(new_sequence(str(born), range(length), priority=rng.randint(0, 2)))
            goals[str(born)] = rng.randint(length + 1, longest)
            born += 1
        step = scheduler.schedule(0.0)
        assert sum(part.count for part in step.slices) <= scheduler.max_batch_tokens
        assert len(scheduler.running) <= scheduler.max_batch_size
        taken = [b for s in scheduler.running for b in s.blocks]
        assert len(set(taken)) == len(taken) == num_blocks - scheduler.blocks.num_free
        for part in step.slices:
            assert part.start == part.sequence.num_cached and part.count > 0
            end = part.start + part.count
            assert len(part.sequence.blocks) * block_size >= end
        sampling = [part.sequence for part in step.slices if part.samples]
        scheduler.advance(step)
        for sequence in sampling:
            sequence.token_ids.append(0)
            if len(sequence.token_ids) >= goals[sequence.id]:
                scheduler.finish(sequence)
                del goals[sequence.id]
        if born == 30 and not goals:
            break
    assert not goals and scheduler.blocks.num_free == num_blocks
