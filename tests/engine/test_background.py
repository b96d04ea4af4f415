"""Sequences in the background give way to all others, and never stand still."""

import pytest

from raylm.engine.background import (
    PRIORITY,
    STEPS,
    TOKENS,
    TOKENS_ALONE,
    background_tokens,
)
from raylm.engine.blocks import BlockManager
from raylm.engine.scheduler import Scheduler
from raylm.engine.sequence import new_sequence


@pytest.mark.parametrize(
    ("has_others", "num_held", "expected"),
    [
        (False, 0, TOKENS_ALONE),
        (False, 99, TOKENS_ALONE),
        (True, 0, 0),
        (True, STEPS - 2, 0),
        (True, STEPS - 1, TOKENS),
        (True, STEPS, TOKENS),
    ],
)
def test_tokens_of_the_background_in_a_step(has_others, num_held, expected):
    assert background_tokens(has_others=has_others, num_held=num_held) == expected


def make(num_blocks=1000, **limits):
    limits = {"max_batch_size": 16, "max_batch_tokens": 512, **limits}
    return Scheduler(BlockManager(num_blocks, 4, prefix_cache=False), **limits)


def add(scheduler, id, num_tokens, priority=0):
    sequence = new_sequence(id, range(num_tokens), priority=priority)
    scheduler.add(sequence)
    return sequence


def run(scheduler, only=()):
    """One step, sampling a token wherever one is due: tokens computed, by id."""
    step = scheduler.schedule(0.0, only)
    scheduler.advance(step)
    for part in step.slices:
        if part.samples:
            part.sequence.token_ids.append(0)
    return {part.sequence.id: part.count for part in step.slices}


def test_it_decodes_in_one_step_of_eight_while_another_answer_is_made():
    scheduler = make()
    for index in range(3):
        add(scheduler, f"line-{index}", 4, PRIORITY)
    assert len(run(scheduler)) == 3
    add(scheduler, "asked", 4)
    sizes = [len(run(scheduler)) for _ in range(4 * STEPS)]
    assert sizes == 4 * [*(STEPS - 1) * [1], 4]


def test_it_has_every_step_once_the_others_are_gone():
    scheduler = make()
    add(scheduler, "line", 4, PRIORITY)
    asked = add(scheduler, "asked", 4)
    assert list(run(scheduler)) == list(run(scheduler)) == ["asked"]
    scheduler.finish(asked)
    assert [list(run(scheduler)) for _ in range(3)] == [["line"]] * 3


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_only_what_nobody_waits_for_is_held_back(priority):
    scheduler = make()
    add(scheduler, "first", 4, 100)
    add(scheduler, "second", 4, priority)
    assert [sorted(run(scheduler)) for _ in range(3)] == [["first", "second"]] * 3


def test_its_prompts_come_in_small_pieces_beside_others_and_larger_ones_alone():
    scheduler = make()
    add(scheduler, "line", 1000, PRIORITY)
    assert run(scheduler) == {"line": TOKENS_ALONE}
    asked = add(scheduler, "asked", 300)
    assert run(scheduler) == {"asked": 300}
    steps = [run(scheduler) for _ in range(STEPS)]
    assert sum("line" in step for step in steps) == 1
    assert {"asked": 1, "line": TOKENS} in steps
    scheduler.finish(asked)
    assert run(scheduler) == {"line": TOKENS_ALONE}


def test_a_newcomer_in_the_background_waits_for_a_step_that_takes_it():
    scheduler = make()
    add(scheduler, "asked", 4)
    add(scheduler, "line", 4, PRIORITY - 5)
    assert [len(run(scheduler)) for _ in range(STEPS)] == [1] * 7 + [2]


def test_suspects_in_the_background_are_tried_at_once():
    scheduler = make()
    line = add(scheduler, "line", 4, PRIORITY)
    add(scheduler, "asked", 4)
    assert run(scheduler, only=[line]) == {"line": 4}
    assert run(scheduler, only=[line]) == {"line": 1}


def test_a_step_is_never_empty_while_there_is_something_to_do():
    scheduler = make(num_blocks=12, max_batch_size=3)
    lines = [add(scheduler, f"line-{i}", 9, PRIORITY) for i in range(4)]
    asked = [add(scheduler, f"asked-{i}", 9) for i in range(3)]
    for _ in range(300):
        if not (scheduler.running or scheduler.waiting):
            break
        assert run(scheduler)
        for sequence in list(scheduler.running):
            if len(sequence.token_ids) > 20:
                scheduler.finish(sequence)
    assert not scheduler.running and not scheduler.waiting
    assert all(len(sequence.token_ids) > 20 for sequence in (*lines, *asked))
