"""Samples by number: the pure order, and hidden tokens that are a pure draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.data.order import sample_indices
from raylm.data.shards import NO_TARGET, Batch
from raylm.errors import DataError
from raylm.train.source import Source, SpecialTokens, mask_tokens

SPECIAL = SpecialTokens((0, 1, 2), 2)
VOCAB, LENGTH = 1000, 512


class Rows:
    """What `Source` asks of a split: rows of tokens, each full of its own two documents."""

    format, num_samples, seq_len, vocab_size = "text", 40, LENGTH, VOCAB

    def batch(self, rows: np.ndarray) -> Batch:
        ids = np.stack([np.random.default_rng(int(r)).integers(0, VOCAB, LENGTH) for r in rows])
        ids[:, 0] = rows
        segments = np.ones(ids.shape, np.int32)
        segments[:, 300:] = 2
        segments[:, 500:] = 0
        return Batch(ids, segments, np.zeros_like(ids), ids.copy())

    def num_targets(self, rows: np.ndarray) -> int:
        return 100 * len(rows)


def source(objective: Any, seed: int = 7) -> Source:
    return Source(Rows(), seed, objective, SPECIAL)  # type: ignore[arg-type]


def test_numbers_are_rows_of_the_pure_order_over_epochs() -> None:
    numbers = [35, 36, 44, 45, 3]
    batch = source("causal").batch(numbers)
    expected = [int(sample_indices(7, 40, n, 1)[0]) for n in numbers]
    assert batch.input_ids[:, 0].tolist() == expected
    assert batch.numbers is not None
    assert batch.numbers.tolist() == numbers
    assert source("causal").batch([10**9]).input_ids[0, 0] == sample_indices(7, 40, 10**9, 1)[0]
    assert source("causal").num_targets(numbers) == 500


def test_every_cut_of_the_numbers_hides_the_same_tokens() -> None:
    whole = source("mlm").batch(np.arange(16))
    parts = [source("mlm").batch(np.arange(n, n + 4)) for n in range(0, 16, 4)]
    for name in ("input_ids", "targets"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(whole, name), joined)
    counted = sum(source("mlm").num_targets([n]) for n in range(16))
    assert counted == (whole.targets != NO_TARGET).sum() == source("mlm").num_targets(range(16))


def test_another_seed_and_another_epoch_hide_others() -> None:
    rows = Rows().batch(np.array([5]))
    draws = [
        mask_tokens(rows, np.array([number]), seed, SPECIAL, VOCAB).targets
        for number, seed in ((5, 7), (45, 7), (5, 8))
    ]
    shared = [((draws[0] >= 0) & (other >= 0)).sum() for other in draws[1:]]
    assert all(count < 0.4 * (draws[0] >= 0).sum() for count in shared)


def test_shares_are_those_of_bert() -> None:
    batch = source("mlm").batch(np.arange(40))
    plain = Rows().batch(sample_indices(7, 40, 0, 40))
    chosen = batch.targets != NO_TARGET
    text = (plain.segment_ids > 0) & (plain.input_ids > 2)
    assert np.array_equal(batch.targets[chosen], plain.input_ids[chosen])
    assert np.array_equal(batch.input_ids[~chosen], plain.input_ids[~chosen])
    assert not (chosen & ~text).any()
    assert chosen.sum() / text.sum() == pytest.approx(0.15, abs=0.01)
    shown, was = batch.input_ids[chosen], plain.input_ids[chosen]
    assert (shown == 2).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown == was).mean() == pytest.approx(0.1, abs=0.03)
    assert ((shown != 2) & (shown != was)).mean() == pytest.approx(0.1, abs=0.03)
    assert not np.isin(shown, (0, 1)).any()


def test_rows_in_order_are_masked_as_samples_of_their_number() -> None:
    found = source("mlm").in_order([3, 4])
    expected = mask_tokens(Rows().batch(np.array([3, 4])), np.array([3, 4]), 7, SPECIAL, VOCAB)
    assert np.array_equal(found.input_ids, expected.input_ids)
    assert source("mlm").num_targets_in_order([3, 4]) == (expected.targets != NO_TARGET).sum()


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 1, "content": "</s>", "special": true},'
        ' {"id": 4, "content": "[MASK]", "special": true}, {"id": 5, "content": "x"}]}'
    )
    special = SpecialTokens.of(tmp_path)
    assert special == SpecialTokens((1, 4), None)
    with pytest.raises(DataError, match="no mask token"):
        Source(Rows(), 0, "mlm", special)  # type: ignore[arg-type]
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}')
    assert SpecialTokens.of(tmp_path).mask == 4
