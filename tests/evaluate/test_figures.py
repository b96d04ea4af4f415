import math

import numpy as np
import pytest

from raylm.config.train import ObjectiveName
from raylm.evaluate.figures import difference_figures, held_out_figures, ratio


def test_held_out_figures_by_hand() -> None:
    # nats, targets, bytes, hits, pairs, pairs kept
    rows = np.array([[2.0, 2, 4, 1, 1, 1], [6.0, 2, 4, 1, 3, 1]])
    figures = held_out_figures(rows)
    assert figures["loss"].value == 2.0
    assert figures["perplexity"].value == pytest.approx(math.exp(2))
    assert figures["bits_per_byte"].value == pytest.approx(8 / math.log(2) / 8)
    assert figures["top1_accuracy"].value == 0.5
    assert figures["loss"].low == 1.0
    assert figures["loss"].high == 3.0


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ("classify", {"loss", "accuracy"}),
        ("mlm", {"loss", "perplexity", "top1_accuracy"}),
        ("seq2seq", {"loss", "perplexity", "top1_accuracy", "bits_per_byte"}),
        ("dpo", {"loss", "perplexity", "top1_accuracy", "bits_per_byte", "preference_accuracy"}),
    ],
)
def test_each_objective_has_the_figures_that_mean_something(
    objective: ObjectiveName, names: set[str]
) -> None:
    rows = np.array([[2.0, 2, 4, 1, 1, 1], [6.0, 2, 4, 1, 3, 1]])
    figures = held_out_figures(rows, objective)
    assert figures.keys() == names
    if objective == "dpo":
        assert figures["preference_accuracy"].value == 0.5


def test_differences_by_hand() -> None:
    rows = np.array([[4.0, 0.4, 3, 8, 6], [4.0, 0.0, 4, 8, 8]])
    figures = difference_figures(rows)
    assert figures["kl"].value == pytest.approx(0.05)
    assert figures["top1_agreement"].value == pytest.approx(7 / 8)
    assert figures["perplexity_ratio"].value == pytest.approx(math.exp(2 / 8))
    assert figures["perplexity"].value == pytest.approx(math.exp(2))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sample = rng.normal(3.0, 1.0, 50)
        figure = ratio(sample, np.ones(50))
        covered += figure.low <= 3.0 <= figure.high
    assert 0.88 <= covered / 200 <= 0.99
