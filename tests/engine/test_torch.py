import asyncio

import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.torch import fitting
from raylm.errors import ConfigError, RequestError

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
    assert client.ask(engine, *requests) == client.ask(other, *requests)
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


def test_the_context_is_bounded_by_model_and_cache(engine, client):
    assert engine.capabilities().max_context_tokens == 512
    with pytest.raises(RequestError) as error:
        client.ask(engine, client.request([5] * 512))
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize("kv_cache", ["u8", "bf16"])
def test_a_cache_type_it_does_not_have_is_refused(llama, tmp_path, kv_cache):
    config = CONFIG.model_copy(update={"kv_cache": kv_cache})
    with pytest.raises(ConfigError) as error:
        load(llama, config, cache_root=tmp_path, digest="d")
    assert error.value.code == "unsupported-kv-cache"


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], 0),
        ([(100, 900)], 1),
        ([(4, 10), (4, 10), (4, 10), (4, 10)], 3),  # rows
        ([(10, 12), (11, 12)], 1),  # 2 x 11 prompt tokens
        ([(4, 10), (4, 30)], 1),  # 2 x 30 cached tokens
    ],
)
def test_a_batch_is_bounded_by_rows_tokens_and_cache(lengths, expected):
    assert fitting(lengths, max_rows=3, max_tokens=20, max_cached_tokens=40) == expected
