import numpy as np
import pytest

from raylm.data.hashing import fractions, text_hash
from raylm.data.select import first_of_equal, require_sequences, select, without
from raylm.errors import DataError


def hashed(*texts: str) -> np.ndarray:
    return np.array([text_hash(t.encode()) for t in texts], dtype="S16")


def many(num: int) -> np.ndarray:
    return hashed(*(str(n) for n in range(num)))


def test_the_first_of_equal_documents_stays() -> None:
    assert first_of_equal(hashed("b", "a", "b", "c", "a")).tolist() == [1, 1, 0, 1, 0]


def test_short_and_duplicate_documents_are_told_apart() -> None:
    hashes = hashed("s", "one", "two", "one", "s", "three", "four")
    sizes = np.array([1, 9, 9, 9, 1, 9, 9])
    chosen = select(hashes, sizes, min_bytes=5, dedup=True, held_out=0.5, seed=1)
    assert chosen.short.tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert chosen.duplicate.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert chosen.kept.tolist() == [0, 1, 1, 0, 0, 1, 1]
    assert not (chosen.train & chosen.held_out).any()


def test_duplicates_stay_when_asked_and_fall_on_the_same_side() -> None:
    hashes = np.concatenate([many(50), many(50)])
    chosen = select(hashes, np.full(100, 9), min_bytes=1, dedup=False, held_out=0.3, seed=0)
    assert chosen.kept.all()
    assert (chosen.held_out[:50] == chosen.held_out[50:]).all()


def test_the_split_has_the_share_and_follows_the_text_alone() -> None:
    hashes, sizes = many(20_000), np.full(20_000, 9)
    chosen = select(hashes, sizes, min_bytes=1, dedup=True, held_out=0.05, seed=0)
    assert abs(chosen.held_out.mean() - 0.05) < 0.006
    fewer = select(hashes[::3], sizes[::3], min_bytes=1, dedup=True, held_out=0.05, seed=0)
    assert (fewer.held_out == chosen.held_out[::3]).all()
    other = select(hashes, sizes, min_bytes=1, dedup=True, held_out=0.05, seed=1)
    assert (other.held_out & chosen.held_out).sum() < 100


def test_a_larger_share_keeps_what_was_held_out() -> None:
    small = select(many(999), np.full(999, 9), min_bytes=1, dedup=True, held_out=0.05, seed=0)
    large = select(many(999), np.full(999, 9), min_bytes=1, dedup=True, held_out=0.2, seed=0)
    assert (large.held_out >= small.held_out).all()


@pytest.mark.parametrize(
    ("num", "held_out", "code"), [(8, 1e-4, "data-no-held-out"), (8, 0.9999, "data-no-train")]
)
def test_an_empty_split_says_which_share_would_do(num: int, held_out: float, code: str) -> None:
    with pytest.raises(DataError) as caught:
        select(many(num), np.full(num, 9), min_bytes=1, dedup=True, held_out=held_out, seed=0)
    assert caught.value.code == code
    offered = float((caught.value.hint or "").split("data.held_out to ")[1].split(" ")[0])
    chosen = select(many(num), np.full(num, 9), min_bytes=1, dedup=True, held_out=offered, seed=0)
    assert min(chosen.held_out.sum(), chosen.train.sum()) == 1


def test_one_document_and_none_cannot_be_split() -> None:
    with pytest.raises(DataError) as caught:
        select(many(1), np.array([9]), min_bytes=1, dedup=True, held_out=0.5, seed=0)
    assert caught.value.code == "data-one-document"
    with pytest.raises(DataError) as caught:
        select(many(3), np.array([9, 9, 9]), min_bytes=10, dedup=True, held_out=0.5, seed=0)
    assert caught.value.code == "data-empty"


def test_a_split_below_one_sequence_says_what_would_do() -> None:
    hashes, tokens = many(100), np.full(100, 10)
    held = fractions(hashes, 0, "held-out") < 0.03
    with pytest.raises(DataError, match="held-out split has") as caught:
        require_sequences(tokens, hashes, held, seq_len=100, seed=0)
    assert caught.value.code == "data-too-small"
    hint = caught.value.hint or ""
    offered = float(hint.split("data.held_out to ")[1].split(",")[0])
    enough = fractions(hashes, 0, "held-out") < offered
    require_sequences(tokens, hashes, enough, seq_len=100, seed=0)
    assert enough.sum() == 10
    assert f"data.seq_len to {int(held.sum()) * 10} or less" in hint


def test_documents_that_do_not_fit_leave_their_split() -> None:
    chosen = select(many(40), np.full(40, 9), min_bytes=1, dedup=True, held_out=0.3, seed=0)
    left_out = np.zeros(40, bool)
    left_out[np.flatnonzero(chosen.train)[:3]] = True
    rest = without(chosen, left_out)
    assert rest.train.sum() == chosen.train.sum() - 3
    assert (rest.held_out == chosen.held_out).all()
    with pytest.raises(DataError, match="records of the held-out split") as caught:
        without(chosen, chosen.held_out)
    assert caught.value.code == "data-too-small"
    assert "data.too_long=truncate" in (caught.value.hint or "")
