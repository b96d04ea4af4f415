import asyncio
import time
from dataclasses import replace

import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.torch.batches import BatchLimits, alike
from raylm.engine.torch.causal import CausalRows
from raylm.errors import ConfigError, RequestError
from tests.engine.alike import bad_row_leaves_the_batch_alone, follows_its_grammar

CONFIG = EngineConfig(kind="torch", precision="f32", kv_cache_bytes=2**22, max_batch_size=5)


@pytest.fixture(scope="module")
def engine(llama, tmp_path_factory):
    engine = load(llama, CONFIG, cache_root=tmp_path_factory.mktemp("none"), digest="d")
    yield engine
    engine.close()


def test_greedy_answers_equal_transformers(engine, llama, reference_of, client, prompts):
    reference = reference_of(llama)
    answers = client.ask(engine, *(client.request(p, max_tokens=20) for p in prompts))
    assert [client.ids(a) for a in answers] == [reference(p, 20) for p in prompts]
    assert engine.stats().steps_total < 4 * 21  # twelve requests in batches of five


def test_int8_folders_are_loaded_by_transformers(int8_llama, reference_of, client, prompts):
    engine = load(int8_llama, CONFIG, cache_root=int8_llama, digest="d")
    answers = client.ask(engine, *(client.request(p, max_tokens=8) for p in prompts[:4]))
    expected = [reference_of(int8_llama)(p, 8) for p in prompts[:4]]
    assert [client.ids(a) for a in answers] == expected
    assert engine.capabilities().weights == "int8"
    engine.close()


def test_an_answer_follows_its_grammar_beside_a_free_one_and_when_continued(
    engine, client, prompts
):
    follows_its_grammar(engine, client, prompts)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_continued_after_any_token_is_the_same(engine, client, prompts, temperature):
    sampling = {"max_tokens": 16, "temperature": temperature, "seed": 3, "ignore_eos": True}
    (whole,) = client.ask(engine, client.request(prompts[3], **sampling))
    ids = client.ids(whole)
    requests = [client.request(prompts[3], ids[:k], **sampling) for k in range(16)]
    for done, chunks in enumerate(client.ask(engine, *requests)):
        assert client.ids(chunks) == ids[done:]
        assert [c.text for c in chunks] == [c.text for c in whole[done:]]


def test_both_engines_draw_the_same_tokens(engine, llama, cache_root, client, prompts):
    exact = CONFIG.model_copy(update={"kind": "openvino"})
    other = load(llama, exact, cache_root=cache_root, digest=llama.name)
    sampling = {"temperature": 0.8, "top_p": 0.9, "seed": 4, "max_tokens": 12, "ignore_eos": True}
    requests = [client.request(p, **sampling) for p in prompts[:6]]
    ours, theirs = client.ask(engine, *requests), client.ask(other, *requests)
    assert [client.told(chunks) for chunks in ours] == [client.told(chunks) for chunks in theirs]
    other.close()


def test_rows_of_different_length_leave_the_batch_when_they_end(engine, client, prompts):
    lengths = (3, 30, 11)
    requests = [client.request(prompts[i], max_tokens=n) for i, n in enumerate(lengths)]
    requests = [client.request(prompts[5], max_tokens=n, ignore_eos=True) for n in lengths]
    answers = client.ask(engine, *requests)
    assert [len(client.ids(a)) for a in answers] == [3, 30, 11]
    assert client.ids(answers[1])[:11] == client.ids(answers[2])


def test_cancel_takes_a_row_out_of_the_batch(engine, client, prompts):
    async def two():
        stopped = client.request(prompts[5], max_tokens=400, ignore_eos=True)
        kept = client.request(prompts[6], max_tokens=12, ignore_eos=True)

        async def stop():
            found = []
            async for chunk in engine.generate(stopped):
                found.append(chunk)
                if len(found) == 2:
                    engine.cancel(stopped.id)
            return found

        return await asyncio.gather(stop(), client.chunks(engine, kept))

    stopped, kept = asyncio.run(two())
    assert stopped[-1].finish_reason == "cancelled"
    assert kept[-1].finish_reason == "length" and len(client.ids(kept)) == 12
    assert engine.stats().num_running == 0


def test_a_row_that_is_not_finite_leaves_the_batch_alone(engine, client, prompts, monkeypatch):
    bad_row_leaves_the_batch_alone(
        engine, client, monkeypatch, CausalRows, [prompts[6], prompts[5]]
    )


def test_a_deadline_is_told_even_if_the_step_fails(engine, client, prompts, monkeypatch):
    monkeypatch.setattr(CausalRows, "logits", lambda rows: 1 / 0)
    late = replace(client.request(prompts[1]), deadline_s=time.time() - 1)

    async def both():
        return await asyncio.gather(
            client.chunks(engine, client.request(prompts[1])),
            client.chunks(engine, late),
            return_exceptions=True,
        )

    broken, refused = asyncio.run(asyncio.wait_for(both(), 10))
    assert broken.code == "engine-step-failed" and refused.code == "deadline_exceeded"


def test_the_context_is_bounded_by_model_and_cache(engine, client):
    assert engine.capabilities().max_context_tokens == 512
    with pytest.raises(RequestError) as error:
        client.ask(engine, client.request([5] * 512))
    assert error.value.code == "context_length_exceeded"


def test_rounded_activations_are_refused(llama, tmp_path):
    config = CONFIG.model_copy(update={"dynamic_quantization": "on"})
    with pytest.raises(ConfigError) as error:
        load(llama, config, cache_root=tmp_path, digest="d")
    assert error.value.code == "unsupported-quantization"


@pytest.mark.parametrize("kv_cache", ["u8", "bf16"])
def test_a_cache_type_it_does_not_have_is_refused(llama, tmp_path, kv_cache):
    config = CONFIG.model_copy(update={"kv_cache": kv_cache})
    with pytest.raises(ConfigError) as error:
        load(llama, config, cache_root=tmp_path, digest="d")
    assert error.value.code == "unsupported-kv-cache"


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([(100, 900)], [0]),
        ([(4, 10), (4, 10), (4, 10), (4, 10)], [0, 1, 2]),  # rows
        ([(10, 12), (11, 12)], [0]),  # 2 x 11 prompt tokens
        ([(4, 10), (4, 30)], [0]),  # 2 x 30 cached tokens
        ([(4, 10), (11, 12), (4, 10)], [0, 2]),
    ],
)
def test_a_batch_is_bounded_by_rows_tokens_and_cache(lengths, expected):
    assert alike(lengths, BatchLimits(3, 20, 40)) == expected


def test_texts_of_similar_length_make_up_a_batch():
    lengths = [(n, n) for n in (40, 400, 90, 41, 113, 5, 350, 3)]
    assert alike(lengths, BatchLimits(8, 10_000)) == [0, 2, 3]  # 5 would be mostly padding
    assert alike(lengths[1:], BatchLimits(8, 10_000)) == [0, 5]
