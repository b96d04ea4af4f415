import numpy as np
import pytest

from raylm.engine.protocol import Sampling
from raylm.engine.sampler import Bias, Penalties, Row, sample, token_logprob, uniform
from raylm.errors import RaylmError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, 1000).astype(np.float32)


def draw(logits, sampling, positions, penalties=None):
    rows = [Row(sampling, position, penalties) for position in positions]
    return [s.token_id for s in sample(np.tile(logits, (len(rows), 1)), rows)]


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_greedy_takes_the_maximum_of_each_row():
    logits = RNG.normal(size=(5, 50)).astype(np.float32)
    rows = [Row(Sampling(temperature=0.0), 0)] * 5
    assert [s.token_id for s in sample(logits, rows)] == logits.argmax(1).tolist()


@pytest.mark.parametrize("seed", [0, 1, -3, 2**70])
def test_the_draw_depends_on_seed_and_position_only(seed):
    sampling = Sampling(temperature=1.0, seed=seed)
    together = draw(LOGITS, sampling, range(20))
    apart = [draw(LOGITS, sampling, [position])[0] for position in range(20)]
    assert together == apart
    assert together != draw(LOGITS, Sampling(seed=seed + 1), range(20))
    assert len(set(together)) > 5


def test_uniform_is_uniform():
    points = np.array([uniform(11, position) for position in range(20_000)])
    counts, _ = np.histogram(points, bins=20, range=(0, 1))
    # chi-square with 19 degrees of freedom: 43.8 has probability 0.001
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8
    assert abs(np.corrcoef(points[:-1], points[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_tempered_distribution(temperature):
    logits = RNG.normal(0, 1, 12).astype(np.float32)
    drawn = draw(logits, Sampling(temperature=temperature, seed=5), range(20_000))
    expected = softmax(logits / temperature) * 20_000
    counts = np.bincount(drawn, minlength=12)
    # chi-square with 11 degrees of freedom: 31.3 has probability 0.001
    assert ((counts - expected) ** 2 / expected).sum() < 31.3


def test_a_draw_over_many_blocks_has_the_right_frequencies():
    logits = RNG.normal(0, 1, 3000).astype(np.float32)
    drawn = np.array(draw(logits, Sampling(seed=2), range(4000)))
    share = np.array([((drawn >= b) & (drawn < b + 500)).mean() for b in range(0, 3000, 500)])
    expected = softmax(logits).reshape(6, 500).sum(1)
    assert np.abs(share - expected).max() < 0.03


@pytest.mark.parametrize("top_k", [1, 2, 10, 999])
def test_top_k_leaves_the_k_likeliest(top_k):
    allowed = set(np.argsort(-LOGITS)[:top_k].tolist())
    drawn = set(draw(LOGITS, Sampling(top_k=top_k, temperature=5.0), range(400)))
    assert drawn <= allowed
    assert len(drawn) >= min(top_k, 10)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_top_p_leaves_the_smallest_set_with_that_probability(top_p, temperature):
    probabilities = softmax(LOGITS / temperature)
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    sampling = Sampling(top_p=top_p, temperature=temperature)
    drawn = set(draw(LOGITS, sampling, range(500)))
    assert drawn <= set(order[:size].tolist())
    assert len(drawn) >= min(size, 20) / 2


def test_top_p_of_a_flat_large_vocabulary_goes_beyond_the_first_guess():
    flat = np.zeros(5000, np.float32)
    flat[:100] = -50.0
    drawn = draw(flat, Sampling(top_p=0.95), range(300))
    assert min(drawn) >= 100 and len(set(drawn)) > 200


@pytest.mark.parametrize("vocab_size", [1000, 8192, 50257])
@pytest.mark.parametrize("top_k", [1, 5, 64, 392, 393, 999])
def test_the_likeliest_of_a_vocabulary_are_those_of_sorting_it(vocab_size, top_k):
    logits = RNG.integers(-40, 40, vocab_size).astype(np.float32)  # full of ties
    entry = token_logprob(logits, 0, top_k)
    assert [token for token, _ in entry.top] == np.argsort(-logits, kind="stable")[:top_k].tolist()
    drawn = set(draw(logits, Sampling(top_k=top_k + 1, temperature=1e4), range(100)))
    assert drawn <= set(np.flatnonzero(logits >= np.sort(logits)[-top_k - 1]).tolist())


def test_top_k_and_top_p_apply_together():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    drawn = set(draw(logits, Sampling(top_k=3, top_p=0.7), range(200)))
    assert drawn == {0, 1}  # of three: 0.44, 0.33, 0.22; two reach 0.7


def test_repetition_penalty_is_that_of_transformers():
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    seen = [3, 5, 5, 900]
    ours = Penalties(1000, seen[:2], seen[2:]).apply(LOGITS, Sampling(repetition_penalty=1.3))
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([seen]), torch.from_numpy(LOGITS.copy())[None]
    )
    assert np.array_equal(ours, theirs[0].numpy())


def test_frequency_and_presence_count_the_answer_only():
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    penalties = Penalties(10, [1, 1, 2], [4, 4, 5])
    penalties.add(5)
    penalties.add(5)
    change = penalties.apply(np.zeros(10, np.float32), sampling)
    assert change.tolist() == [0, 0, 0, 0, -1.25, -1.75, 0, 0, 0, 0]


def test_penalties_change_a_greedy_choice():
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    penalties = Penalties(3, [], [0])
    sampling = Sampling(temperature=0.0, presence_penalty=0.5)
    assert draw(logits, sampling, [1], penalties) == [1]


def test_logprobs_are_of_the_raw_model_and_match_torch():
    import torch

    sampling = Sampling(temperature=0.1, top_k=2, num_logprobs=5)
    sampled = sample(LOGITS[None], [Row(sampling, 0)])[0]
    expected = torch.log_softmax(torch.from_numpy(LOGITS), 0).numpy()
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(expected[sampled.token_id], abs=1e-5)
    assert [t for t, _ in sampled.logprob.top] == np.argsort(-LOGITS)[:5].tolist()
    assert [p for _, p in sampled.logprob.top] == pytest.approx(
        np.sort(expected)[::-1][:5].tolist(), abs=1e-5
    )


def test_all_logprobs_sum_to_one():
    found = token_logprob(LOGITS, 3, 1000)
    assert sum(np.exp(p) for _, p in found.top) == pytest.approx(1.0, abs=1e-5)
    assert token_logprob(LOGITS, 3, 0).top == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_an_error_of_its_own(bad):
    logits = np.stack([LOGITS] * 3)
    logits[1, 7] = bad
    first, error, last = sample(logits, [Row(Sampling(temperature=0.0), 0)] * 3)
    assert isinstance(error, RaylmError) and error.code == "non-finite-logits"
    assert first == last and first.token_id == LOGITS.argmax()


def test_a_forbidden_token_is_never_drawn():
    logits = np.full(600, -np.inf, np.float32)
    logits[[3, 300]] = 0.0
    assert set(draw(logits, Sampling(), range(200))) == {3, 300}


def test_a_tiny_temperature_is_greedy_without_overflow():
    assert draw(LOGITS, Sampling(temperature=1e-40), [0, 1]) == [int(LOGITS.argmax())] * 2


@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_min_p_leaves_what_is_likely_enough_beside_the_likeliest(min_p, temperature):
    probabilities = softmax(LOGITS / temperature)
    kept = set(np.flatnonzero(probabilities >= min_p * probabilities.max()).tolist())
    drawn = set(draw(LOGITS, Sampling(min_p=min_p, temperature=temperature), range(400)))
    assert drawn <= kept
    assert len(drawn) >= min(len(kept), 20) / 2


def test_min_p_comes_before_top_p():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    # Without the third, the first has 0.625 of what is left.
    assert set(draw(logits, Sampling(min_p=0.5, top_p=0.6), range(200))) == {0}
    assert set(draw(logits, Sampling(top_p=0.6), range(200))) == {0, 1}


def steered(logits, sampling, position=0, **row):
    return sample(logits[None], [Row(sampling, position, **row)])[0]


def test_a_bias_changes_the_choice_and_not_the_logprob():
    sampling = Sampling(temperature=0.0, num_logprobs=0)
    plain = steered(LOGITS, sampling)
    token_id = int(np.argsort(LOGITS)[0])
    bias = Bias([(token_id, 50.0), (plain.token_id, -50.0)])
    found = steered(LOGITS, sampling, bias=bias)
    assert found.token_id == token_id
    assert found.logprob == token_logprob(LOGITS, token_id, 0)


def test_a_bias_shifts_the_odds_by_its_exponential():
    logits = np.zeros(4, np.float32)
    bias = Bias([(2, float(np.log(3.0)))])
    rows = [Row(Sampling(seed=9), position, bias=bias) for position in range(6000)]
    drawn = [s.token_id for s in sample(np.tile(logits, (6000, 1)), rows)]
    assert drawn.count(2) / 6000 == pytest.approx(0.5, abs=0.03)


def test_banned_tokens_are_not_drawn():
    best = int(LOGITS.argmax())
    assert steered(LOGITS, Sampling(temperature=0.0), banned_ids=(best,)).token_id != best


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
@pytest.mark.parametrize("top", [{}, {"top_k": 5}, {"top_p": 0.3}, {"min_p": 0.5}])
def test_what_the_grammar_allows_is_never_lost(temperature, top):
    allowed = np.zeros(1000, np.bool_)
    allowed[[3, 700]] = True
    logits = LOGITS.copy()
    logits[[3, 700]] = -np.inf
    sampling = Sampling(temperature=temperature, **top)
    drawn = {
        steered(logits, sampling, position, allowed=allowed, banned_ids=(3, 700)).token_id
        for position in range(50)
    }
    assert drawn <= {3, 700}
