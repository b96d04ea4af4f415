import numpy as np

from raylm.data.hashing import text_hash
from raylm.data.sample import Excerpt, Sampling, choose, draw


def drawn(num: int, size: int, sampling: Sampling, seed: int = 0) -> list[tuple[int, Excerpt]]:
    texts = [f"{n} ".ljust(size, "x") for n in range(num)]
    return [
        (n, e) for n, t in enumerate(texts) for e in draw(t, text_hash(t.encode()), seed, sampling)
    ]


def test_a_corpus_below_the_limit_is_drawn_whole() -> None:
    sampling = Sampling.of(corpus_bytes=10_000, sample_bytes=10_000)
    pairs = drawn(10, 1000, sampling)
    assert sum(len(e.text) for _, e in pairs) == 10_000
    chosen = choose(pairs, np.ones(10, bool), 10_000)
    assert sum(map(len, chosen)) == 10_000


def test_a_large_corpus_is_sampled_evenly_and_up_to_the_limit() -> None:
    sampling = Sampling.of(corpus_bytes=1_000_000, sample_bytes=100_000)
    pairs = drawn(100, 10_000, sampling)
    assert 100_000 < sum(len(e.text) for _, e in pairs) < 150_000
    chosen = choose(pairs, np.ones(100, bool), 100_000)
    assert sum(map(len, chosen)) == 100_000
    assert len({n for n, _ in pairs}) > 70


def test_one_huge_document_is_sampled_too() -> None:
    sampling = Sampling.of(corpus_bytes=4_000_000, sample_bytes=40_000)
    assert 20_000 < sum(len(e.text) for _, e in drawn(1, 4_000_000, sampling)) < 80_000


def test_held_out_documents_are_never_chosen() -> None:
    pairs = drawn(10, 100, Sampling(1.0, 1000))
    train = np.arange(10) % 2 == 0
    assert sorted(int(t.split()[0]) for t in choose(pairs, train, 10_000)) == [0, 2, 4, 6, 8]


def test_the_choice_does_not_depend_on_arrival() -> None:
    pairs = drawn(50, 100, Sampling(1.0, 1000))
    train = np.ones(50, bool)
    assert choose(pairs, train, 777) == choose(pairs[::-1], train, 777)
    assert choose(pairs, train, 777) != choose(drawn(50, 100, Sampling(1.0, 1000), 1), train, 777)


def test_the_limit_never_splits_a_character() -> None:
    assert choose([(0, Excerpt(0.5, "aüüü"))], np.ones(1, bool), 4) == ["aü"]
