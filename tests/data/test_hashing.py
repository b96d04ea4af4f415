import numpy as np

from raylm.data.hashing import document_id, fractions, mix64, seeded, text_hash


def test_mix64_is_the_published_splitmix64() -> None:
    # First outputs of the generator with seed 1234567 (Rosetta Code).
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + step * np.arange(3, dtype=np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_fractions_are_uniform_and_independent_of_each_other() -> None:
    hashes = np.array([text_hash(str(n).encode()) for n in range(20_000)])
    a, b = fractions(hashes, 0, "one"), fractions(hashes, 0, "two")
    assert 0 <= a.min() < 0.001 and 0.999 < a.max() < 1
    assert abs(a.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a, fractions(hashes, 1, "one"))[0, 1]) < 0.02


def test_hashes_that_end_in_nul_keep_their_value() -> None:
    ends_in_nul = b"x" * 15 + b"\0"
    array = np.array([ends_in_nul, b"x" * 15 + b"\1"], dtype="S16")
    assert array[0] != array[1]
    assert seeded(array[:1], 0, "p")[0] == seeded(np.frombuffer(ends_in_nul, "S16"), 0, "p")[0]
    assert document_id("a", array[0]) == document_id("a", ends_in_nul)


def test_a_document_is_its_text_and_its_source() -> None:
    one = text_hash(b"text")
    ids = {document_id("a", one), document_id("b", one), document_id("a", text_hash(b"other"))}
    assert len(ids) == 3
    assert all(len(i) == 16 for i in ids)
