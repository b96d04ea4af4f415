import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from raylm.engine.batch import token_batch
from raylm.engine.scheduler import Slice, Step
from raylm.engine.sequence import new_sequence
from raylm.errors import RaylmError, RequestError
from tests.engine.alike import follows_its_grammar

VOCAB_SIZE = 400


@pytest.fixture(scope="module")
def engine(start, llama):
    return start(llama)


def test_an_answer_follows_its_grammar_beside_a_free_one_and_when_continued(
    engine, client, prompts
):
    follows_its_grammar(engine, client, prompts)


def test_greedy_answers_equal_transformers_with_requests_joining_midway(
    engine, llama, reference_of, client, prompts
):
    reference = reference_of(llama)

    async def joining():
        async def one(index, prompt):
            await asyncio.sleep(0.005 * index)
            return await client.chunks(engine, client.request(prompt, max_tokens=24))

        return await asyncio.gather(*(one(i, p) for i, p in enumerate(prompts)))

    before = engine.stats().steps_total
    answers = asyncio.run(joining())
    for prompt, chunks in zip(prompts, answers, strict=True):
        assert client.ids(chunks) == reference(prompt, 24)
    steps = engine.stats().steps_total - before
    assert steps < 0.9 * sum(len(client.ids(chunks)) for chunks in answers)


def test_text_and_positions_of_the_chunks(engine, client, tokenizer, prompts):
    (chunks,) = client.ask(engine, client.request(prompts[4], max_tokens=40, ignore_eos=True))
    ids = client.ids(chunks)
    assert client.text(chunks) == tokenizer.decode(ids)
    assert [chunk.position for chunk in chunks] == list(range(40))
    assert [chunk.finish_reason for chunk in chunks] == [None] * 39 + ["length"]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
        ("Mistral", {"sliding_window": 16}),
        ("Llama", {"dtype": "bfloat16", "tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
    ids=["qwen2", "qwen3", "mistral-window", "bf16-tied", "biases", "llama3-rope"],
)
def test_each_kind_of_decoder_equals_transformers(
    start, make_model, reference_of, client, prompts, architecture, changes
):
    folder = make_model(architecture, **changes)
    reference, engine = reference_of(folder), start(folder)
    some = prompts[2::3]
    answers = client.ask(engine, *(client.request(p, max_tokens=16) for p in some))
    assert [client.ids(a) for a in answers] == [reference(p, 16) for p in some]
    engine.close()


@pytest.mark.parametrize("fixture", ["int8_llama", "int4_llama"])
def test_integer_weights_answers_equal_transformers_on_the_same_folder(
    start, request, reference_of, client, prompts, fixture
):
    folder = request.getfixturevalue(fixture)
    reference, engine = reference_of(folder), start(folder)
    answers = client.ask(engine, *(client.request(p, max_tokens=24) for p in prompts))
    assert [client.ids(a) for a in answers] == [reference(p, 24) for p in prompts]
    assert engine.capabilities().weights == fixture.removesuffix("_llama")


def test_integers_stored_one_a_byte_give_the_answers_of_packed_ones(
    start, llama, int8_llama, quantize, client, prompts, tmp_path
):
    plain = start(quantize(llama, tmp_path, "int-quantized"))
    some = [client.request(p, max_tokens=12) for p in prompts[::3]]
    expected = [client.ids(a) for a in client.ask(start(int8_llama), *some)]
    assert [client.ids(a) for a in client.ask(plain, *some)] == expected


def test_preemption_does_not_change_the_answers(start, llama, engine, client, prompts):
    small = start(llama, kv_cache_bytes=2**20, max_batch_tokens=64)
    assert small.stats().num_blocks == 64  # of 32 tokens: half of what the requests need
    requests = [client.request(p, max_tokens=60, ignore_eos=True) for p in prompts * 3]
    expected = [client.told(chunks) for chunks in client.ask(engine, *requests)]
    assert [client.told(chunks) for chunks in client.ask(small, *requests)] == expected
    assert small._loop._runner.num_preempted > 0
    assert small.stats().num_free_blocks == 64


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_continued_after_any_token_is_the_same(engine, client, prompts, temperature):
    sampling = {
        "max_tokens": 24,
        "temperature": temperature,
        "seed": 12,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "num_logprobs": 2,
        "ignore_eos": True,
    }
    prompt = prompts[3]
    (whole,) = client.ask(engine, client.request(prompt, **sampling))
    ids = client.ids(whole)
    requests = [client.request(prompt, ids[:k], **sampling) for k in range(len(ids))]
    for done, chunks in enumerate(client.ask(engine, *requests)):
        assert client.ids(chunks) == ids[done:]
        assert [c.text for c in chunks] == [c.text for c in whole[done:]]
        assert [c.position for c in chunks] == [c.position for c in whole[done:]]
        assert chunks[-1].finish_reason == "length"


def test_a_finished_answer_continued_only_ends(engine, client, prompts):
    (whole,) = client.ask(engine, client.request(prompts[3], max_tokens=5, ignore_eos=True))
    ids = client.ids(whole)
    again = client.request(prompts[3], ids, max_tokens=5, ignore_eos=True)
    ((last,),) = client.ask(engine, again)
    assert (last.position, last.token_ids, last.finish_reason) == (5, (), "length")


def test_the_end_of_sequence_token_ends_the_answer(engine, client, prompts):
    for seed in range(60):
        request = client.request(
            prompts[2], max_tokens=200, temperature=3.0, seed=seed, num_logprobs=0
        )
        (chunks,) = client.ask(engine, request)
        if chunks[-1].finish_reason == "stop":
            break
    assert chunks[-1].token_ids == (1,)
    assert 1 not in client.ids(chunks[:-1])
    continued = replace(request, id="again", emitted_ids=tuple(client.ids(chunks)))
    ((last,),) = client.ask(engine, continued)
    assert last.finish_reason == "stop" and not last.token_ids


def test_seeds_give_repeatable_and_different_answers(engine, client, prompts):
    def answers(seed):
        some = (client.request(p, temperature=1.0, seed=seed, max_tokens=12) for p in prompts)
        return [client.ids(a) for a in client.ask(engine, *some)]

    first = answers(1)
    assert first == answers(1)
    assert first != answers(2)


def test_a_stop_string_ends_the_answer_and_stays_out_of_the_text(engine, client, prompts):
    (whole,) = client.ask(engine, client.request(prompts[6], max_tokens=30, ignore_eos=True))
    text = client.text(whole)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    request = client.request(prompts[6], max_tokens=30, ignore_eos=True, stop=(stop,))
    (chunks,) = client.ask(engine, request)
    assert client.text(chunks) == text[: text.find(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert len(client.ids(chunks)) < 30


def test_a_strong_presence_penalty_repeats_no_token(engine, client, prompts):
    request = client.request(prompts[0], max_tokens=60, presence_penalty=1e6, ignore_eos=True)
    (chunks,) = client.ask(engine, request)
    assert len(set(client.ids(chunks))) == 60


def test_logprobs_equal_torch_log_softmax(engine, llama, client, prompts):
    import torch
    from transformers import AutoModelForCausalLM

    request = client.request(prompts[7], max_tokens=6, num_logprobs=4, ignore_eos=True)
    (chunks,) = client.ask(engine, request)
    ids = client.ids(chunks)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[7] + ids])).logits[0, len(prompts[7]) - 1 : -1]
    expected = torch.log_softmax(logits, -1)
    for row, (token_id, chunk) in enumerate(zip(ids, chunks, strict=True)):
        (found,) = chunk.logprobs
        assert found.token_id == token_id
        assert found.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-4)
        assert len(found.top) == 4
        assert sum(np.exp(p) for _, p in found.top) <= 1 + 1e-6
        for other, logprob in found.top:
            assert logprob == pytest.approx(float(expected[row, other]), abs=1e-4)


def test_cancel_ends_the_answer_and_frees_its_blocks(engine, client, prompts):
    request = client.request(prompts[5], max_tokens=400, ignore_eos=True)

    async def cancelled():
        found = []
        async for chunk in engine.generate(request):
            found.append(chunk)
            if len(found) == 3:
                began = engine.stats().steps_total
                engine.cancel(request.id)
        return found, engine.stats().steps_total - began

    before = engine.stats().cancelled_total
    chunks, steps = asyncio.run(cancelled())
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].position == len(client.ids(chunks)) < 400
    assert steps <= 5  # a step is faster than the event loop here
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.cancelled_total == before + 1


def test_closing_the_iterator_early_cancels(engine, client, prompts):
    async def leave():
        answer = engine.generate(client.request(prompts[5], max_tokens=400, ignore_eos=True))
        async for _ in answer:
            break
        await answer.aclose()

    asyncio.run(leave())
    wait_until(lambda: engine.stats().num_running == 0)
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_queue_that_is_full_refuses_with_503(start, llama, client, prompts):
    tight = start(llama, max_batch_size=1, max_waiting=2)

    async def crowd():
        requests = [client.request(prompts[0], max_tokens=100, ignore_eos=True) for _ in range(6)]
        return await asyncio.gather(
            *(client.chunks(tight, r) for r in requests), return_exceptions=True
        )

    results = asyncio.run(crowd())
    refused = [r for r in results if isinstance(r, RequestError)]
    assert len(refused) == 3
    assert {(e.status, e.code) for e in refused} == {(503, "overloaded")}
    assert all(1.0 <= e.retry_after_s <= 60.0 for e in refused)
    assert all(len(r) == 100 for r in results if isinstance(r, list))


def test_a_deadline_that_passes_in_the_queue_is_a_504(start, llama, client, prompts):
    tight = start(llama, max_batch_size=1)
    first = client.request(prompts[0], max_tokens=200, ignore_eos=True)
    late = replace(client.request(prompts[0]), deadline_s=time.time() - 1)

    async def both():
        return await asyncio.gather(
            client.chunks(tight, first), client.chunks(tight, late), return_exceptions=True
        )

    answered, refused = asyncio.run(both())
    assert len(answered) == 200
    assert isinstance(refused, RequestError)
    assert (refused.status, refused.code) == (504, "deadline_exceeded")


def test_a_prompt_that_is_too_long_is_a_400_with_both_numbers(start, llama, client):
    short = start(llama, max_context_tokens=64)
    assert short.capabilities().max_context_tokens == 64
    with pytest.raises(RequestError, match=r"64 tokens.*64 tokens") as error:
        client.ask(short, client.request([5] * 64))
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
    (chunks,) = client.ask(short, client.request([5] * 60, max_tokens=50, ignore_eos=True))
    assert len(client.ids(chunks)) == 4 and chunks[-1].finish_reason == "length"


def test_a_step_that_raises_ends_its_requests_and_the_engine_goes_on(
    start, llama, client, prompts, monkeypatch
):
    engine = start(llama)
    model = engine._loop._runner._model
    whole = model.forward
    monkeypatch.setattr(type(model), "forward", lambda self, batch: 1 / 0)
    with pytest.raises(RaylmError, match="division by zero") as error:
        client.ask(engine, client.request(prompts[1]))
    assert error.value.code == "engine-step-failed"
    monkeypatch.setattr(type(model), "forward", lambda self, batch: whole(batch))
    engine.health()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    (chunks,) = client.ask(engine, client.request(prompts[1], max_tokens=4, ignore_eos=True))
    assert len(client.ids(chunks)) == 4


def test_a_request_that_breaks_steps_fails_alone_among_many(
    start, llama, engine, client, prompts, monkeypatch
):
    broken = [7, 7, 7]
    sampling = {"max_tokens": 20, "ignore_eos": True}
    expected = client.ask(engine, *(client.request(p, **sampling) for p in prompts))
    fragile = start(llama)
    whole = fragile._loop._runner._model.forward
    num_failures = 0

    def forward(batch):
        nonlocal num_failures
        logits = whole(batch)
        ids = batch.token_ids.tolist()
        if any(ids[i : i + 3] == broken for i in range(len(ids))):
            num_failures += 1
            raise ValueError("tokens it does not like")
        return logits

    monkeypatch.setattr(fragile._loop._runner._model, "forward", forward)
    requests = [client.request(p, **sampling) for p in [*prompts[:6], broken, *prompts[6:]]]

    async def all_of_them():
        answers = (client.chunks(fragile, request) for request in requests)
        return await asyncio.gather(*answers, return_exceptions=True)

    found = asyncio.run(all_of_them())
    error = found.pop(6)
    assert isinstance(error, RaylmError) and error.code == "engine-step-failed"
    assert [client.ids(a) for a in found] == [client.ids(a) for a in expected]
    assert [client.text(a) for a in found] == [client.text(a) for a in expected]
    assert [[c.position for c in a] for a in found] == [list(range(20))] * len(prompts)
    assert 1 <= num_failures <= 5  # 1 + log2(13)
    fragile.health()
    assert fragile.stats().num_free_blocks == fragile.stats().num_blocks


def test_a_closed_engine_ends_what_runs_and_refuses(start, llama, client, prompts):
    engine = start(llama)
    request = client.request(prompts[1], max_tokens=400, ignore_eos=True)

    async def close_midway():
        found = []
        async for chunk in engine.generate(request):
            found.append(chunk)
            if len(found) == 2:
                threading.Thread(target=engine.close).start()
        return found

    assert asyncio.run(close_midway())[-1].finish_reason == "cancelled"
    with pytest.raises(RaylmError) as error:
        client.ask(engine, client.request(prompts[1]))
    assert error.value.code == "engine-closed"


def test_u8_cache_and_auto_precision_stay_close_to_exact(start, llama, engine, client, prompts):
    fast = start(llama, precision="auto")
    some = [client.request(p, max_tokens=8, num_logprobs=0, ignore_eos=True) for p in prompts[4:8]]
    pairs = zip(client.ask(engine, *some), client.ask(fast, *some), strict=True)
    first = [(a[0].logprobs[0].logprob, b[0].logprobs[0].logprob) for a, b in pairs]
    assert all(abs(exact - close) < 0.3 for exact, close in first)


def test_token_batch_lays_decode_and_prefill_rows_side_by_side():
    decoding = new_sequence("a", range(100, 107))
    decoding.blocks.extend([4, 2, 9])  # one more than its tokens take
    prefilling = new_sequence("b", range(50, 60))
    prefilling.blocks.extend([1, 3, 5])
    batch = token_batch(Step([Slice(decoding, 6, 1), Slice(prefilling, 2, 5)], []), 4)
    assert batch.token_ids.tolist() == [106, 52, 53, 54, 55, 56]
    assert batch.position_ids.tolist() == [6, 2, 3, 4, 5, 6]
    assert batch.past_lens.tolist() == [6, 2]
    assert batch.subsequence_begins.tolist() == [0, 1, 6]
    assert batch.block_indices.tolist() == [4, 2, 1, 3]
    assert batch.block_indices_begins.tolist() == [0, 2, 4]
    assert batch.max_context_len == 7
    assert batch.rows.tolist() == [0]  # the prompt is not at its end
    decoding.token_ids.append(1)  # no view is left over that would forbid it


def test_serving_imports_neither_torch_nor_transformers(llama, cache_root):
    code = f"""
import asyncio, sys
from pathlib import Path
from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Grammar, Request, Sampling
engine = load(Path({str(llama)!r}), EngineConfig(kv_cache_bytes=2**21),
              cache_root=Path({str(cache_root)!r}), digest={llama.name!r})
async def ask():
    sampling = Sampling(max_tokens=3, grammar=Grammar("regex", "[a-z]*"))
    return [c async for c in engine.generate(Request("a", (5, 6), sampling))]
print(len(asyncio.run(ask())), engine.capabilities().engine)
engine.close()
print(sorted({{"torch", "transformers", "ray"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 openvino", "[]"]


def wait_until(condition, timeout_s=5.0):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
