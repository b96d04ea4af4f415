import numpy as np
import pytest

from raylm.engine.acceptance import Acceptance, StepCost, num_worth_guessing

FREE = np.ones_like
BY_TOKEN = np.copy  # a step bound by computing: every token costs as much as the first


def line(share):
    """A first token costs 1, every further one this share of it."""
    return lambda num_tokens: 1 + share * (num_tokens - 1)


@pytest.mark.parametrize(
    ("chances", "offered", "seconds", "num_tokens", "expected"),
    [
        pytest.param([1.0], [4], line(0.4), 1, [4], id="all-right"),
        pytest.param([0.9], [4], line(0.4), 1, [4], id="mostly-right"),
        pytest.param([0.5], [4], line(0.4), 1, [1], id="half-right"),
        pytest.param([0.5], [4], line(0.1), 1, [2], id="half-right-and-cheap"),
        pytest.param([0.3], [4], line(0.4), 1, [0], id="mostly-wrong"),
        pytest.param([0.02], [4], FREE, 1, [0], id="hardly-ever-right"),
        pytest.param([0.99], [4], BY_TOKEN, 1, [0], id="computing-is-all"),
        pytest.param([0.99, 0.1], [4, 4], line(0.2), 2, [4, 0], id="one-of-two"),
        pytest.param([1.0] * 3, [2, 0, 1], FREE, 3, [2, 0, 1], id="what-is-offered"),
        pytest.param([0.6] * 8, [4] * 8, line(0.04), 8, [2] * 8, id="a-batch-where-it-is-cheap"),
        pytest.param([0.6] * 8, [4] * 8, line(0.4), 8, [0] * 8, id="a-batch-where-it-is-not"),
        pytest.param([0.9], [4], line(0.01), 500, [4], id="beside-a-long-prompt"),
        pytest.param([], [], FREE, 5, [], id="nobody-samples"),
        pytest.param([0.9], [0], FREE, 1, [0], id="nothing-found"),
    ],
)
def test_as_many_are_guessed_as_give_the_most_tokens_a_second(
    chances, offered, seconds, num_tokens, expected
):
    assert num_worth_guessing(chances, offered, seconds, num_tokens) == expected


def test_the_chance_follows_what_came_true_and_begins_with_that_of_others():
    acceptance = Acceptance()
    assert acceptance.chance(0.3) == 0.3
    for _ in range(5):
        acceptance.note(4, 4)
    assert acceptance.chance(0.3) > 0.85
    for _ in range(30):
        acceptance.note(0, 4)
    assert acceptance.chance(0.0) < 0.05


@pytest.mark.parametrize(
    ("num_right", "num_tried", "expected"), [(0, 4, (0, 1)), (2, 4, (2, 3)), (4, 4, (4, 4))]
)
def test_guesses_behind_the_first_wrong_one_count_for_nothing(num_right, num_tried, expected):
    acceptance = Acceptance()
    acceptance.note(num_right, num_tried)
    assert acceptance.num_right <= expected[0]
    assert sum(0.9**age for age in range(expected[1])) == pytest.approx(acceptance.num_tried)


def test_without_trials_it_is_worth_one_again_after_a_while():
    acceptance, overall = Acceptance(), Acceptance()
    for _ in range(30):
        acceptance.note(0, 1)
        overall.note(0, 1)
    num_steps = 0
    while num_worth_guessing([acceptance.chance(overall.chance(0.5))], [4], line(0.3), 1) == [0]:
        acceptance.rest()
        overall.rest()
        num_steps += 1
    assert 100 < num_steps < 300


def test_costs_are_those_measured_and_in_between_a_line():
    cost = StepCost()
    assert cost.seconds(np.array([1.0, 5.0])).tolist() == [4.0, 8.0]
    for _ in range(50):
        cost.note(1, 0.010)
        cost.note(5, 0.030)
    found = cost.seconds(np.array([1.0, 3.0, 5.0, 9.0]))
    assert found[[0, 2]] == pytest.approx([0.010, 0.030])
    assert 0.015 < found[1] < 0.025
    assert found[3] == pytest.approx(0.030 * 12 / 8)


def test_a_step_that_once_was_slow_is_tried_again():
    cost = StepCost()
    cost.note(1, 0.010)
    cost.note(5, 1.0)
    for _ in range(300):
        cost.note(1, 0.010)
    assert cost.seconds(np.array([5.0]))[0] == pytest.approx(0.020)


def test_slow_moments_of_the_machine_hardly_count():
    cost = StepCost()
    for index in range(200):
        cost.note(4, 0.1 if index % 10 == 0 else 0.010)
    assert cost.seconds(np.array([4.0]))[0] < 0.02
