"""A draft model beside the served one, both real: the answers are those without it, f32."""

import asyncio
import itertools
import json

import pytest

from raylm.config.engine import DraftModel, EngineConfig
from raylm.engine.convert import ensure_ir
from raylm.engine.draft_folder import draft_ir
from raylm.engine.load import load
from raylm.errors import ConfigError

EXACT = EngineConfig(kind="openvino", precision="f32", kv_cache_bytes=2**22)


@pytest.fixture(scope="module")
def first_layer(llama, make_model):
    """The served model's first layer with its embeddings, norm and head."""
    from safetensors.torch import load_file, save_file

    folder = make_model("Llama", num_hidden_layers=1)
    names = load_file(folder / "model.safetensors")
    weights = load_file(llama / "model.safetensors")
    save_file({n: weights[n] for n in names}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def start(cache_root, llama):
    engines = []

    def start(draft=None, **changes):
        if draft is not None:
            changes["speculation"] = {"kind": "draft", "model": str(draft), "num_tokens": 4}
        config = EngineConfig(**{**EXACT.model_dump(), **changes})
        engine = load(llama, config, cache_root=cache_root, digest=llama.name)
        engines.append(engine)
        if draft is not None:
            # By these clocks no guess costs anything, so that figures do not hang on the machine.
            engine._loop._runner._clock = itertools.count().__next__
            engine._loop._runner._speculation._guesser._clock = lambda: 0.0
        return engine

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def plain(start):
    return start()


@pytest.fixture(scope="module")
def twin(start, llama):
    return start(llama)


SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 0.4},
    "nucleus": {"temperature": 0.9, "top_p": 0.9, "top_k": 40},
    "logprobs": {"temperature": 0.3, "num_logprobs": 2},
    "penalties": {"repetition_penalty": 1.05, "frequency_penalty": 0.1},
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_answers_are_those_without_a_draft_and_its_twin_is_right(
    plain, twin, client, prompts, sampling
):
    settings = {"max_tokens": 40, "ignore_eos": True, **sampling}
    asked = [client.request(prompt, seed=seed, **settings) for seed, prompt in enumerate(prompts)]
    before = twin.stats()
    expected = [client.ids(chunks) for chunks in client.ask(plain, *asked)]
    assert [client.ids(chunks) for chunks in client.ask(twin, *asked)] == expected
    after = twin.stats()
    guessed = after.guessed_tokens_total - before.guessed_tokens_total
    confirmed = after.confirmed_tokens_total - before.confirmed_tokens_total
    assert guessed > 200
    # Penalties of what is guessed are not known before it is drawn.
    assert confirmed > (0.6 if "repetition_penalty" in sampling else 0.97) * guessed
    assert after.num_free_blocks == after.num_blocks


def test_a_worse_draft_is_wrong_at_times_and_changes_nothing(
    start, plain, first_layer, client, prompts
):
    engine = start(first_layer)
    for sampling in ({}, {"temperature": 0.2}):
        asked = [
            client.request(p, seed=i, max_tokens=40, ignore_eos=True, **sampling)
            for i, p in enumerate(prompts)
        ]
        expected = [client.ids(chunks) for chunks in client.ask(plain, *asked)]
        assert [client.ids(chunks) for chunks in client.ask(engine, *asked)] == expected
    stats = engine.stats()
    assert 0 < stats.confirmed_tokens_total < stats.guessed_tokens_total


def test_preemption_small_budgets_and_prefixes_change_nothing(start, plain, llama, client, prompts):
    small = start(llama, kv_cache_bytes=2**20, max_batch_tokens=64)
    asked = [client.request(p, max_tokens=60, ignore_eos=True) for p in prompts * 3]
    expected = [client.ids(chunks) for chunks in client.ask(plain, *asked)]
    assert [client.ids(chunks) for chunks in client.ask(small, *asked)] == expected
    longer = [
        client.request([*p, *answer], max_tokens=9, ignore_eos=True)
        for p, answer in zip(prompts, expected, strict=False)
    ]
    expected = [client.ids(chunks) for chunks in client.ask(plain, *longer)]
    assert [client.ids(chunks) for chunks in client.ask(small, *longer)] == expected
    stats = small.stats()
    assert small._loop._runner.num_preempted > 0
    assert stats.prefix_hit_tokens_total > 0
    assert stats.confirmed_tokens_total > 0.9 * stats.guessed_tokens_total > 0
    assert stats.num_free_blocks == stats.num_blocks


def test_an_answer_continued_after_any_token_is_the_same(twin, client, prompts):
    sampling = {"max_tokens": 24, "temperature": 0.4, "seed": 3, "ignore_eos": True}
    (whole,) = client.ask(twin, client.request(prompts[4], **sampling))
    ids = client.ids(whole)
    requests = [client.request(prompts[4], ids[:k], **sampling) for k in range(len(ids))]
    for done, chunks in enumerate(client.ask(twin, *requests)):
        assert client.ids(chunks) == ids[done:]


def test_cancelling_one_leaves_the_others_their_text(plain, twin, client, prompts):
    asked = [client.request(p, max_tokens=40, ignore_eos=True) for p in prompts[:6]]
    expected = [client.ids(chunks) for chunks in client.ask(plain, *asked)]

    async def one(index, request):
        found = []
        async for chunk in twin.generate(request):
            found.append(chunk)
            if index % 2:
                twin.cancel(request.id)
        return client.ids(found)

    async def together():
        return await asyncio.gather(*(one(i, r) for i, r in enumerate(asked)))

    for index, ids in enumerate(asyncio.run(together())):
        assert ids == expected[index][: len(ids)]
        assert (len(ids) < 40) == bool(index % 2)
    assert twin.stats().num_free_blocks == twin.stats().num_blocks


def test_a_draft_takes_its_part_of_the_memory(plain, twin):
    assert twin.stats().num_blocks == plain.stats().num_blocks // 2


def test_a_draft_of_another_vocabulary_is_refused(start, llama, make_model):
    folder = make_model("Llama", num_hidden_layers=1)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    (first, a), (second, b) = list(vocab.items())[10:12]
    vocab[first], vocab[second] = b, a
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another vocabulary") as error:
        start(folder)
    assert error.value.code == "draft-tokenizer"


def test_a_draft_with_more_logits_than_its_model_is_refused(start, make_model):
    with pytest.raises(ConfigError, match="another vocabulary"):
        start(make_model("Llama", num_hidden_layers=1, vocab_size=416))


def test_a_draft_that_is_not_there_is_named(start, tmp_path):
    with pytest.raises(ConfigError, match="nowhere") as error:
        start(tmp_path / "nowhere")
    assert error.value.code == "no-draft"


def test_a_converted_draft_is_taken_as_it_is(llama, first_layer, cache_root, tmp_path):
    once = draft_ir(DraftModel(kind="draft", model=str(first_layer)), llama, cache_root)
    assert once.is_relative_to(cache_root)
    again = draft_ir(DraftModel(kind="draft", model=str(once)), llama, tmp_path)
    assert again == once
    target = ensure_ir(llama, cache_root, llama.name)
    assert draft_ir(DraftModel(kind="draft", model=str(once)), target, tmp_path) == once
