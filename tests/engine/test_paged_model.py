import numpy as np
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.convert import ensure_ir
from raylm.engine.paged_model import TokenBatch, compile_paged_model, num_blocks_in
from raylm.engine.processor import Precision, choose_precision, processor_flags
from raylm.errors import ModelError

CONFIG = EngineConfig(precision="f32", kv_cache_bytes=2**20)
EXACT = Precision("f32", "f32")


@pytest.fixture(scope="module")
def xml(llama, cache_root):
    return ensure_ir(llama, cache_root, llama.name) / "model.xml"


def load(xml, precision):
    compiled = compile_paged_model(xml, CONFIG, precision)
    return compiled.with_cache(num_blocks_in(CONFIG.kv_cache_bytes, compiled.block_bytes))


def one_sequence(ids, begin, end, blocks, rows):
    return TokenBatch(
        token_ids=ids[begin:end].copy(),
        position_ids=np.arange(begin, end),
        past_lens=np.array([begin], np.int32),
        subsequence_begins=np.array([0, end - begin], np.int32),
        block_indices=np.array(blocks[: -(-end // 32)], np.int32),
        block_indices_begins=np.array([0, -(-end // 32)], np.int32),
        max_context_len=end,
        rows=np.array(rows, np.int64),
    )


def test_logits_equal_transformers_in_chunks_and_scattered_blocks(llama, xml):
    import torch
    from transformers import AutoModelForCausalLM

    model = load(xml, EXACT)
    assert (model.num_blocks, model.block_size) == (64, 32)
    ids = np.random.default_rng(0).integers(2, 400, 80)
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        expected = reference(torch.from_numpy(ids)[None]).logits[0].numpy()
    blocks = [40, 3, 17]
    first = model.forward(one_sequence(ids, 0, 50, blocks, [0, 49])).copy()
    nothing = model.forward(one_sequence(ids, 50, 70, blocks, []))
    last = model.forward(one_sequence(ids, 70, 80, blocks, range(10))).copy()
    assert nothing.shape == (0, 400)
    assert np.abs(first - expected[[0, 49]]).max() < 1e-3
    assert np.abs(last - expected[70:]).max() < 1e-3
    assert np.abs(expected).max() > 5  # the tolerance is small beside the logits


def test_a_u8_cache_has_more_blocks_and_close_logits(xml):
    exact, small = (load(xml, Precision("f32", kv)) for kv in ("f32", "u8"))
    assert small.num_blocks > 2 * exact.num_blocks
    ids = np.random.default_rng(1).integers(2, 400, 60)
    batch = one_sequence(ids, 0, 60, [2, 5], range(60))
    a, b = exact.forward(batch).copy(), small.forward(batch).copy()
    assert 0 < np.abs(a - b).mean() < 0.5


@pytest.mark.parametrize(
    ("folder", "group", "used"),
    [("llama", 64, 64), ("int8_llama", 64, 64), ("int4_llama", 64, 32), ("int4_llama", 0, 0)],
)
def test_activations_share_scales_where_weights_do(request, cache_root, folder, group, used):
    folder = request.getfixturevalue(folder)
    xml = ensure_ir(folder, cache_root, folder.name) / "model.xml"
    compiled = compile_paged_model(xml, CONFIG, Precision("f32", "f32", group)).compiled
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == used


@pytest.mark.skipif(
    not choose_precision(EngineConfig(), processor_flags()).activation_group,
    reason="this processor has no instructions for it",
)
@pytest.mark.parametrize("name", ["int8_llama", "int4_llama"])
def test_rounded_activations_give_close_logits_and_none_are_rounded_unasked(
    request, cache_root, name
):
    folder = request.getfixturevalue(name)
    xml = ensure_ir(folder, cache_root, folder.name) / "model.xml"
    ids = np.random.default_rng(1).integers(2, 400, 60)
    batch = one_sequence(ids, 0, 60, [2, 5], range(60))
    groups = [Precision("f32", "f32", group) for group in (0, 0, 64)]
    exact, again, rounded = (load(xml, precision).forward(batch).copy() for precision in groups)
    assert np.array_equal(exact, again)
    off = np.abs(exact - rounded)
    assert off.max() > 0 and off.mean() < 0.06 * exact.std()


@pytest.mark.parametrize("kv_cache", ["f32", "u8"])
def test_scrubbed_blocks_are_zero_and_others_as_they_were(xml, kv_cache):
    model = load(xml, Precision("f32", kv_cache))
    for cache in model._caches:
        cache.data[:] = 7
    model.scrub([3, 0, 40])
    model.scrub([])
    for cache in model._caches:
        zero = [block for block in range(model.num_blocks) if not cache.data[block].any()]
        assert zero == [0, 3, 40]
        assert (cache.data == 7).sum() == cache.data.size * (
            model.num_blocks - 3
        ) / model.num_blocks


def test_a_graph_without_attention_is_refused(tmp_path):
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], ov.Type.f32)
    path = tmp_path / "model.xml"
    ov.save_model(ov.Model([ops.relu(x)], [x], "none"), path)
    with pytest.raises((ModelError, RuntimeError)):
        load(path, EXACT)
