"""The steps that a model is measured by when it is loaded: which count, and what they leave."""

from __future__ import annotations

import numpy as np
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.convert import convert
from raylm.engine.pace import NUM_SEQUENCES, decode_pace
from raylm.engine.paged_model import TokenBatch, compile_paged_model
from raylm.engine.processor import Precision
from tests.serve.conftest import write_llama


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    root = tmp_path_factory.mktemp("pace")
    convert(write_llama(root / "tiny"), root / "ir")
    return compile_paged_model(
        root / "ir/model.xml", EngineConfig(num_threads=1), Precision("f32", "f32")
    )


class Counted:
    """A model whose steps are seen, and take as long as they are told to, by a clock of its own."""

    def __init__(self, model, step_s):
        self.model, self.step_s = model, list(step_s)
        self.num_blocks, self.block_size = model.num_blocks, model.block_size
        self.batches: list[TokenBatch] = []
        self.now_s = 0.0

    def forward(self, batch):
        self.batches.append(batch)
        self.now_s += self.step_s[min(len(self.batches), len(self.step_s)) - 1]
        return self.model.forward(batch)

    def scrub(self, blocks):
        self.model.scrub(blocks)

    def pace(self):
        return decode_pace(self, processor_s=lambda: self.now_s, clock=lambda: self.now_s)


def test_the_best_step_counts_and_the_first_does_not(compiled):
    model = Counted(compiled.with_cache(20), [0.001, 0.01, 0.004, 0.02])
    assert model.pace() == pytest.approx(NUM_SEQUENCES / 0.004)
    assert len(model.batches) == 9


def test_long_steps_are_few(compiled):
    model = Counted(compiled.with_cache(20), [0.5])
    assert model.pace() == pytest.approx(NUM_SEQUENCES / 0.5)
    assert len(model.batches) == 2


@pytest.mark.parametrize(("num_blocks", "num_sequences"), [(1, 1), (3, 3), (20, NUM_SEQUENCES)])
def test_a_cache_is_left_as_it_was(compiled, num_blocks, num_sequences):
    model = compiled.with_cache(num_blocks)
    counted = Counted(model, [0.01])
    assert counted.pace() == pytest.approx(num_sequences / 0.01)
    batch = counted.batches[0]
    assert len(batch.rows) == num_sequences == len(set(batch.block_indices.tolist()))
    assert not any(np.any(cache.data) for cache in model._caches)
    logits = model.forward(batch)
    assert logits.shape[0] == num_sequences and np.isfinite(logits).all()
