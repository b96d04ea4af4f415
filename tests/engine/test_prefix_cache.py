"""The prefix cache over real models: the same answers, f32, as without it."""

import random
from dataclasses import replace

import numpy as np
import pytest

BLOCK_SIZE = 32
VOCAB_SIZE = 400


def family(seed=0):
    """Prompts that begin alike for a length around block borders, and end differently."""
    rng = random.Random(seed)
    stem = [rng.randrange(2, VOCAB_SIZE) for _ in range(130)]
    prompts = []
    for border in (32, 64, 96, 128):
        for common in (border - 1, border, border + 1):
            for more in (0, 1, 31, 40):
                end = [rng.randrange(2, VOCAB_SIZE) for _ in range(more)]
                prompts.append(stem[:common] + end)
    rng.shuffle(prompts)
    return prompts


def ask_in_waves(client, engine, prompts, size, **sampling):
    answers = []
    for begin in range(0, len(prompts), size):
        requests = [client.request(p, **sampling) for p in prompts[begin : begin + size]]
        answers += client.ask(engine, *requests)
    return answers


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("Llama", {}), ("Mistral", {"sliding_window": 40}), ("Qwen3", {"head_dim": 32})],
    ids=["llama", "window", "qwen3"],
)
def test_greedy_answers_are_those_without_the_cache(
    start, make_model, client, architecture, changes
):
    folder = make_model(architecture, **changes)
    cold, warm = start(folder, prefix_cache=False), start(folder)
    prompts = family()
    sampling = {"max_tokens": 12, "num_logprobs": 0, "ignore_eos": True}
    expected = ask_in_waves(client, cold, prompts, 16, **sampling)
    found = ask_in_waves(client, warm, prompts, 5, **sampling)
    assert [client.ids(a) for a in found] == [client.ids(a) for a in expected]
    assert [client.text(a) for a in found] == [client.text(a) for a in expected]
    pairs = [
        (a.logprobs[0].logprob, b.logprobs[0].logprob)
        for x, y in zip(found, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert max(abs(a - b) for a, b in pairs) < 1e-3
    cached = [chunks[0].num_cached_tokens for chunks in found]
    assert all(
        n % BLOCK_SIZE == 0 and n < len(prompt) for n, prompt in zip(cached, prompts, strict=True)
    )
    stats = warm.stats()
    assert stats.prefix_hit_tokens_total == sum(cached) > 0.5 * stats.prefix_query_tokens_total
    assert stats.prefix_query_tokens_total == sum(len(prompt) for prompt in prompts)
    assert stats.num_free_blocks == stats.num_blocks
    assert {chunks[0].num_cached_tokens for chunks in expected} == {0}
    assert cold.stats().prefix_hit_tokens_total == 0


def test_the_same_with_few_blocks_and_preemption(start, llama, client):
    cold = start(llama, prefix_cache=False)
    tight = start(llama, kv_cache_bytes=2**20, max_batch_tokens=96)
    prompts = family(1)[:24]
    sampling = {"max_tokens": 110, "ignore_eos": True}
    expected = ask_in_waves(client, cold, prompts, 16, **sampling)
    found = ask_in_waves(client, tight, prompts, len(prompts), **sampling)
    assert [client.ids(a) for a in found] == [client.ids(a) for a in expected]
    assert tight._loop._runner.num_preempted > 0
    assert tight.stats().prefix_hit_tokens_total > 0
    assert tight.stats().num_free_blocks == tight.stats().num_blocks


def test_an_answer_continued_elsewhere_finds_its_prompt_and_is_the_same(start, llama, client):
    engine = start(llama)
    prompt = family(2)[0]
    sampling = {"max_tokens": 70, "temperature": 0.8, "seed": 5, "ignore_eos": True}
    (whole,) = client.ask(engine, client.request(prompt, **sampling))
    ids = client.ids(whole)
    for emitted in (1, 31, 50, 69):
        (rest,) = client.ask(engine, client.request(prompt, ids[:emitted], **sampling))
        assert client.ids(rest) == ids[emitted:]
        assert client.text(rest) == "".join(chunk.text for chunk in whole[emitted:])
        full = (len(prompt) + emitted - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert rest[0].num_cached_tokens == min(full, len(prompt))


def test_tenants_find_only_what_they_have_asked_themselves(start, llama, client):
    engine = start(llama)
    prompt = family(3)[0] + [7] * 64

    def cached(salt):
        request = replace(client.request(prompt, max_tokens=1), cache_salt=salt)
        ((chunk,),) = client.ask(engine, request)
        return chunk.num_cached_tokens

    assert [cached("a"), cached("b"), cached("")] == [0, 0, 0]
    most = (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert [cached("a"), cached("b"), cached("")] == [most] * 3


def test_an_8_bit_cache_is_shared_too(start, llama, client):
    cold = start(llama, kv_cache="u8", prefix_cache=False)
    warm = start(llama, kv_cache="u8")
    prompts = family(4)[:12]
    sampling = {"max_tokens": 1, "num_logprobs": 0}
    expected = ask_in_waves(client, cold, prompts, 12, **sampling)
    found = ask_in_waves(client, warm, prompts, 3, **sampling)
    assert warm.stats().prefix_hit_tokens_total > 0
    gaps = [
        abs(a[0].logprobs[0].logprob - b[0].logprobs[0].logprob)
        for a, b in zip(found, expected, strict=True)
        if a[0].token_ids == b[0].token_ids
    ]
    assert len(gaps) >= 10 and float(np.mean(gaps)) < 0.1


def test_the_prompt_s_logprobs_equal_torch_log_softmax(start, llama, client):
    import torch
    from transformers import AutoModelForCausalLM

    engine = start(llama, max_batch_tokens=48)
    prompts = [p for p in family(5) if len(p) > 100][:3]
    client.ask(engine, *(client.request(p, max_tokens=1) for p in prompts))
    requests = [client.request(p, max_tokens=2, num_prompt_logprobs=3) for p in prompts]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for prompt, chunks in zip(prompts, client.ask(engine, *requests), strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1).numpy()
        nothing, *entries = chunks[0].prompt_logprobs
        assert nothing is None and [entry.token_id for entry in entries] == prompt[1:]
        for row, entry in zip(expected, entries, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-3)
            assert [t for t, _ in entry.top] == np.argsort(-row)[:3].tolist()
        assert chunks[0].num_cached_tokens == 0
