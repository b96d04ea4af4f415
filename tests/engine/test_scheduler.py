import collections
import random

import pytest

from raylm.engine.blocks import BlockManager
from raylm.engine.scheduler import MAX_SCORED_ROWS, Scheduler, Slice, Step
from raylm.engine.sequence import new_sequence


def make(num_blocks=100, block_size=4, max_batch_size=8, max_batch_tokens=64, prefix_cache=False):
    return Scheduler(
        BlockManager(num_blocks, block_size, prefix_cache=prefix_cache),
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
    )


def run(scheduler, only=()):
    """One step, sampling a token wherever one is due: {id: (start, count, samples)}."""
    step = scheduler.schedule(0.0, only)
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
        scheduler.blocks = BlockManager(
            4, 4, prefix_cache=False
        )  # one spare for each that is running
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
    assert len(run(scheduler)) == 15
    scheduler.add(new_sequence("high", [1], priority=1))
    assert "high" in run(scheduler) and len(run(scheduler)) == 15


@pytest.mark.parametrize(
    ("limits", "lows", "high", "displaced"),
    [
        # low prompts, high prompt, those of low priority that give way in the first step
        pytest.param({}, [4, 4], 4, [], id="room-for-all"),
        pytest.param({"max_batch_size": 2}, [4, 4], 4, ["1"], id="places"),
        pytest.param({"num_blocks": 9}, [11, 11], 4, [], id="blocks-left"),
        pytest.param({"num_blocks": 8}, [11, 11], 8, ["1"], id="blocks"),
        pytest.param({"num_blocks": 8}, [11, 11], 20, ["1", "0"], id="all-blocks"),
        pytest.param({"max_batch_tokens": 16}, [100, 100], 8, [], id="token-budget"),
    ],
)
def test_a_newcomer_of_higher_priority_runs_in_the_next_step(limits, lows, high, displaced):
    scheduler = make(**limits)
    for index, length in enumerate(lows):
        scheduler.add(new_sequence(str(index), range(length)))
    run(scheduler)
    scheduler.add(new_sequence("high", range(high), priority=1))
    assert run(scheduler)["high"] == (0, high, True)
    assert scheduler.num_preempted == len(displaced)
    assert {s.id for s in scheduler.waiting} >= set(displaced)


def test_nobody_gives_way_to_his_equal_or_for_nothing():
    scheduler = make(num_blocks=8)
    scheduler.add(new_sequence("elder", range(15), priority=2))
    scheduler.add(new_sequence("low", range(7)))
    run(scheduler)
    scheduler.add(new_sequence("equal", range(15)))
    scheduler.add(new_sequence("high", range(15), priority=1))  # the elder leaves it 3 blocks
    assert sorted(run(scheduler)) == ["elder", "low"]
    assert scheduler.num_preempted == 0


def test_a_long_prompt_of_low_priority_goes_on_once_the_newcomer_is_read():
    scheduler = make(max_batch_tokens=16)
    scheduler.add(new_sequence("low", range(100)))
    run(scheduler)
    scheduler.add(new_sequence("high", range(20), priority=1))
    assert run(scheduler) == {"high": (0, 16, False)}
    assert run(scheduler) == {"high": (16, 4, True), "low": (16, 12, False)}


def test_with_only_some_all_others_wait_and_come_back():
    scheduler = make(num_blocks=5, max_batch_size=2)
    for name in "abc":
        scheduler.add(new_sequence(name, range(4)))
    assert list(run(scheduler)) == ["a", "b"]
    b, c = scheduler.running[1], scheduler.waiting[0]
    assert list(run(scheduler, [b, c])) == ["b", "c"]
    assert [s.id for s in scheduler.waiting] == ["a"] and scheduler.waiting[0].num_cached == 0
    scheduler.cancel(c)
    assert list(run(scheduler)) == ["b", "a"]


def test_a_scored_prompt_takes_nothing_from_the_cache_and_bounded_rows():
    scheduler = make(num_blocks=300, max_batch_tokens=1000, prefix_cache=True)
    scheduler.add(new_sequence("a", range(300)))
    run(scheduler)
    scored = new_sequence("b", range(300), num_scored=299)
    scheduler.add(scored)
    scheduler.add(new_sequence("c", range(40), num_scored=39))
    assert run(scheduler) == {"a": (300, 1, True), "b": (0, MAX_SCORED_ROWS, False)}
    shape = run(scheduler)
    assert shape["b"] == (MAX_SCORED_ROWS, 300 - MAX_SCORED_ROWS, True)
    assert shape["c"] == (0, 40, True)
    assert scored.num_found == 0


def test_a_known_prefix_is_not_computed_again():
    scheduler = make(prefix_cache=True)
    scheduler.add(new_sequence("a", range(10)))
    run(scheduler)
    scheduler.add(new_sequence("b", [*range(8), 50, 51, 52]))
    scheduler.add(new_sequence("c", range(10), salt="other"))
    assert run(scheduler) == {"a": (10, 1, True), "b": (8, 3, True), "c": (0, 10, True)}
    assert scheduler.num_queried_tokens == 31 and scheduler.num_found_tokens == 8


def test_the_prefix_of_one_that_was_preempted_is_still_there():
    scheduler = make(num_blocks=6, max_batch_size=1, prefix_cache=True)
    scheduler.add(new_sequence("low", range(9)))
    run(scheduler)
    scheduler.add(new_sequence("high", range(100, 104), priority=1))
    assert run(scheduler) == {"high": (0, 4, True)}
    scheduler.finish(scheduler.running[0])
    assert run(scheduler) == {"low": (8, 2, True)}
    assert scheduler.num_found_tokens == 0  # counted when it first came


class Memory:
    """What the blocks hold, token by token; sees that no step reads or writes what it must not."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.held = {}

    def compute(self, step):
        size = self.blocks.block_size
        users = collections.Counter(b for p in step.slices for b in p.sequence.blocks)
        for part in step.slices:
            sequence, end = part.sequence, part.start + part.count
            for position in range(part.start):
                block = sequence.blocks[position // size]
                held = (sequence.salt, position, sequence.token_ids[position])
                assert self.held[block, position % size] == held
            for position in range(part.start, end):
                block = sequence.blocks[position // size]
                assert users[block] == 1
                held = (sequence.salt, position, sequence.token_ids[position])
                self.held[block, position % size] = held

    def spoil(self, step):
        """What a failed step may have left behind."""
        size = self.blocks.block_size
        for part in step.slices:
            for position in range(part.start, part.start + part.count):
                self.held[part.sequence.blocks[position // size], position % size] = None


def check_blocks(blocks, running):
    users = collections.Counter(b for s in running for b in s.blocks)
    assert [users[b] for b in range(blocks.num_blocks)] == blocks._num_users
    idle = [*blocks._free, *blocks._cached]
    assert len(set(idle)) == len(idle) == blocks.num_free
    assert sorted([*idle, *users]) == list(range(blocks.num_blocks))
    known = {b: key for b, key in enumerate(blocks._key_of) if key is not None}
    assert {key: b for b, key in known.items()} == blocks._block_of
    assert set(blocks._cached) <= set(known) and not set(blocks._free) & set(known)
    salts = collections.defaultdict(set)
    for sequence in running:
        for block in sequence.blocks:
            salts[block].add(sequence.salt)
    assert all(len(found) == 1 for found in salts.values())


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_keeps_every_invariant(seed, prefix_cache):
    """Blocks are never lost, shared alike or not at all, budgets hold, everything finishes."""
    rng = random.Random(seed)
    num_blocks, block_size = rng.randint(8, 30), rng.choice([1, 4, 16])
    scheduler = make(
        num_blocks, block_size, rng.randint(1, 6), rng.randint(6, 40), prefix_cache=prefix_cache
    )
    memory = Memory(scheduler.blocks)
    longest = num_blocks * block_size
    stems = [[rng.randrange(9) for _ in range(longest)] for _ in range(2)]
    goals, born = {}, 0
    for _ in range(3000):
        if born < 40 and rng.random() < 0.4:
            length = rng.randint(1, max(1, longest // 2))
            common = rng.randint(0, length)
            tokens = rng.choice(stems)[:common] + [rng.randrange(9) for _ in range(length - common)]
            scheduler.add(
                new_sequence(
                    str(born), tokens, priority=rng.randint(0, 2), salt=rng.choice(["", "", "t"])
                )
            )
            goals[str(born)] = rng.randint(length + 1, longest)
            born += 1
        only = [s for s in scheduler.running + scheduler.waiting if rng.random() < 0.5]
        step = scheduler.schedule(0.0, only if rng.random() < 0.1 else ())
        assert sum(part.count for part in step.slices) <= scheduler.max_batch_tokens
        assert len(scheduler.running) <= scheduler.max_batch_size
        check_blocks(scheduler.blocks, scheduler.running)
        for part in step.slices:
            assert part.start == part.sequence.num_cached and part.count > 0
            end = part.start + part.count
            assert len(part.sequence.blocks) * block_size >= end
        if rng.random() < 0.05:
            memory.spoil(step)
            for part in step.slices:
                scheduler.distrust(part.sequence)
            continue
        memory.compute(step)
        sampling = [part.sequence for part in step.slices if part.samples]
        scheduler.advance(step)
        for sequence in sampling:
            sequence.token_ids.append(rng.randrange(9))
            if len(sequence.token_ids) >= goals[sequence.id]:
                scheduler.finish(sequence)
                del goals[sequence.id]
        if goals and rng.random() < 0.02:
            gone = rng.choice(scheduler.running + scheduler.waiting)
            scheduler.cancel(gone)
            del goals[gone.id]
        if born == 40 and not goals:
            break
    assert not goals and scheduler.blocks.num_free == num_blocks
    check_blocks(scheduler.blocks, [])
    assert (scheduler.num_found_tokens > 0) is prefix_cache


def speculate(scheduler, step, *guess):
    """The step with this guess behind every sequence that there is room for."""
    wanted = {part.sequence.id: len(guess) for part in step.slices}
    granted = scheduler.reserve(step, wanted)
    return step.guessing({sequence.id: guess[:count] for sequence, count in granted})


def test_guesses_take_what_is_left_of_the_budget():
    scheduler = make(max_batch_tokens=10)
    for id in "abc":
        scheduler.add(new_sequence(id, range(2)))
    step = speculate(scheduler, scheduler.schedule(0.0), 7, 8, 9)
    assert [(s.count, s.guessed, s.num_computed) for s in step.slices] == [
        (2, (7, 8, 9), 5),
        (2, (7,), 3),
        (2, (), 2),
    ]


def test_a_guess_takes_no_block_that_another_may_need():
    for num_blocks, expected in ((3, ()), (4, ()), (5, (7, 8))):
        scheduler = make(num_blocks=num_blocks)
        for id in "ab":  # a block each, which is full
            scheduler.add(new_sequence(id, range(4)))
            step = scheduler.schedule(0.0)
            scheduler.advance(step)
        step = Step([Slice(scheduler.running[0], 3, 1)], [])
        (part,) = speculate(scheduler, step, 7, 8).slices
        assert part.guessed == expected
        assert scheduler.blocks.num_free == num_blocks - 2 - bool(expected)


def test_prompts_in_the_middle_and_scored_ones_are_not_guessed_for():
    scheduler = make(max_batch_tokens=16)
    scheduler.add(new_sequence("scored", range(6), num_scored=5))
    scheduler.add(new_sequence("long", range(40)))
    step = scheduler.schedule(0.0)
    assert [part.count for part in step.slices] == [6, 10]
    scheduler.max_batch_tokens = 64
    assert speculate(scheduler, step, 7) == step


def test_confirmed_tokens_are_cached_and_their_full_blocks_can_be_found():
    scheduler = make(prefix_cache=True)
    sequence = new_sequence("a", range(6))
    scheduler.add(sequence)
    step = speculate(scheduler, scheduler.schedule(0.0), 6, 7, 8)
    scheduler.advance(step)
    sequence.token_ids.extend([6, 7, 40])  # 8 was wrong
    scheduler.confirm(sequence, 2)
    assert sequence.num_cached == 8 and sequence.num_pending == 1
    scheduler.finish(sequence)
    for last, found in ((40, 8), (8, 8)):
        other = new_sequence("b", [*range(8), last, 0, 0, 0, 0])
        scheduler.add(other)
        scheduler.schedule(0.0)
        assert other.num_cached == found
        scheduler.cancel(other)
