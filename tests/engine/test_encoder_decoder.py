"""T5 in the torch engine, against transformers' own `generate` in f32."""

import asyncio
import json
import random
import re
import shutil

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Grammar
from raylm.engine.torch.encoder_decoder import EncoderDecoderRows
from raylm.errors import ModelError, RequestError
from raylm.model.build import model_of_shape
from raylm.model.shapes import EncoderDecoderShape
from tests.engine.alike import bad_row_leaves_the_batch_alone
from tests.engine.conftest import EOS, VOCAB_SIZE

CONFIG = EngineConfig(kind="auto", precision="f32", kv_cache_bytes=2**22, max_batch_size=5)
TOKENS = 20


@pytest.fixture(scope="module")
def t5(save_folder):
    torch.manual_seed(3)
    shape = EncoderDecoderShape(64, 96, 2, 3, 4, 16, tie_embeddings=False)
    model = model_of_shape(shape, VOCAB_SIZE, {"eos": EOS, "pad": None})
    return save_folder(model, sharper=2.0)


@pytest.fixture(scope="module")
def engine(t5, tmp_path_factory):
    engine = load(t5, CONFIG, cache_root=tmp_path_factory.mktemp("none"), digest="d")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(t5):
    """expected(prompt_ids, max_tokens): transformers' greedy answer, start token left out."""
    model = AutoModelForSeq2SeqLM.from_pretrained(t5, dtype=torch.float32).eval()

    def answer(prompt_ids, max_tokens=TOKENS, **options):
        ids = torch.tensor([prompt_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            use_cache=False,  # its cache takes the decoder to be as deep as the encoder
            **options,
        )
        return out[0, 1:].tolist()

    return answer


def mix(seed, lengths):
    rng = random.Random(seed)
    return [[rng.randrange(2, VOCAB_SIZE) for _ in range(n)] + [EOS] for n in lengths]


@pytest.mark.parametrize(
    "lengths",
    [(7,), (3, 5, 4, 30, 29), (60, 1, 200, 2, 61, 58, 199, 3), (33,) * 7],
    ids=["alone", "one batch", "several batches", "equal"],
)
def test_greedy_answers_equal_transformers_in_any_company(engine, expected, client, lengths):
    prompts = mix(len(lengths), lengths)
    answers = client.ask(engine, *(client.request(p, max_tokens=TOKENS) for p in prompts))
    ids = [client.ids(answer) for answer in answers]
    assert ids == [expected(prompt) for prompt in prompts]
    assert len({tuple(answer) for answer in ids}) > len(ids) // 2  # they do depend on the prompt


def test_a_prompt_is_encoded_once_and_short_ones_do_not_pay_for_long_ones(t5, client):
    engine = load(t5, CONFIG, cache_root=t5, digest="d")
    widths = []
    rows = engine._loop._runner._answers._begin_rows.args[0].get_encoder()
    rows.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    prompts = mix(1, (3, 300, 5, 4, 280))
    client.ask(engine, *(client.request(p, max_tokens=9, ignore_eos=True) for p in prompts))
    assert sorted(widths) == [(2, 301), (3, 6)]
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_continued_after_any_token_is_the_same(engine, client, temperature):
    (prompt,) = mix(5, (17,))
    sampling = {"max_tokens": 16, "temperature": temperature, "seed": 3, "ignore_eos": True}
    (whole,) = client.ask(engine, client.request(prompt, num_logprobs=2, **sampling))
    ids = client.ids(whole)
    requests = [client.request(prompt, ids[:k], num_logprobs=2, **sampling) for k in range(16)]
    for done, chunks in enumerate(client.ask(engine, *requests)):
        assert client.ids(chunks) == ids[done:]
        assert [c.text for c in chunks] == [c.text for c in whole[done:]]
        found = [c.logprobs[0].logprob for c in chunks]
        assert found == pytest.approx([c.logprobs[0].logprob for c in whole[done:]], abs=1e-4)


def test_the_text_is_of_the_answer_alone_and_ends_at_a_stop_string(engine, tokenizer, client):
    (prompt,) = mix(9, (11,))
    (whole,) = client.ask(engine, client.request(prompt, max_tokens=12, ignore_eos=True))
    text = client.text(whole)
    assert text == tokenizer.decode(client.ids(whole))
    stop = text[4:6]
    (cut,) = client.ask(engine, client.request(prompt, max_tokens=12, stop=(stop,)))
    assert client.text(cut) == text[: text.index(stop)] and cut[-1].finish_reason == "stop"


def test_the_repetition_penalty_counts_the_answer_as_transformers_does(engine, expected, client):
    (prompt,) = mix(4, (25,))
    (answer,) = client.ask(engine, client.request(prompt, max_tokens=20, repetition_penalty=1.5))
    assert client.ids(answer) == expected(prompt, repetition_penalty=1.5)
    assert client.ids(answer) != expected(prompt)


def test_an_answer_follows_its_grammar_and_goes_on_with_it(engine, client):
    (prompt,) = mix(5, (9,))
    asked = {
        "max_tokens": 40,
        "temperature": 0.9,
        "seed": 2,
        "grammar": Grammar("regex", "[ab]{6}-[0-9]{3}"),
    }
    assert {"generate", "grammar", "embed"} <= engine.capabilities().features
    assert "prompt_logprobs" not in engine.capabilities().features
    (whole,) = client.ask(engine, client.request(prompt, **asked))
    assert re.fullmatch("[ab]{6}-[0-9]{3}", client.text(whole))
    ids = client.ids(whole)
    (rest,) = client.ask(engine, client.request(prompt, ids[:4], **asked))
    assert client.ids(rest) == ids[4:]


def test_a_row_that_is_not_finite_leaves_the_batch_alone(engine, client, monkeypatch):
    bad_row_leaves_the_batch_alone(engine, client, monkeypatch, EncoderDecoderRows, mix(6, (9, 8)))


def test_cancel_takes_a_row_out_of_the_batch(engine, client):
    first, second = mix(6, (10, 12))

    async def two():
        stopped = client.request(first, max_tokens=400, ignore_eos=True)
        kept = client.request(second, max_tokens=12, ignore_eos=True)

        async def stop():
            found = []
            async for chunk in engine.generate(stopped):
                found.append(chunk)
                if len(found) == 2:
                    engine.cancel(stopped.id)
            return found

        return await asyncio.gather(stop(), client.chunks(engine, kept))

    stopped, kept = asyncio.run(two())
    (alone,) = client.ask(engine, client.request(second, max_tokens=12, ignore_eos=True))
    assert stopped[-1].finish_reason == "cancelled"
    assert client.ids(kept) == client.ids(alone)
    assert engine.stats().num_running == 0


def test_prompt_and_answer_have_limits_of_their_own(t5, tmp_path, client):
    folder = tmp_path / "trained-on-512"
    shutil.copytree(t5, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 24}))
    engine = load(folder, CONFIG, cache_root=tmp_path, digest="d")
    able = engine.capabilities()
    assert (able.max_context_tokens, able.max_answer_tokens, able.max_prompt_tokens) == (24, 24, 24)
    assert able.end_of_input_id == EOS
    (answer,) = client.ask(engine, client.request([5] * 24, max_tokens=30, ignore_eos=True))
    assert len(client.ids(answer)) == 24
    with pytest.raises(RequestError, match="25 tokens"):
        client.ask(engine, client.request([5] * 25))
    engine.close()


def test_relative_positions_go_as_far_as_memory_and_configuration(t5, tmp_path):
    # 3 decoder layers x 4 heads x 16 numbers x 4 bytes, twice, a token: 1536 bytes.
    engine = load(t5, CONFIG, cache_root=tmp_path, digest="d")
    assert engine.capabilities().max_context_tokens == 2**22 // 1536 // 2
    engine.close()
    roomy = CONFIG.model_copy(update={"kv_cache_bytes": 2**26})
    for asked, limit in ((None, 4096), (5000, 5000), (100, 100)):
        config = roomy.model_copy(update={"max_context_tokens": asked})
        engine = load(t5, config, cache_root=tmp_path, digest="d")
        assert engine.capabilities().max_context_tokens == limit
        engine.close()


def test_a_decoder_must_know_what_it_starts_with(t5, tmp_path):
    folder = tmp_path / "no-start"
    shutil.copytree(t5, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("decoder_start_token_id")
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        load(folder, CONFIG, cache_root=tmp_path, digest="d")


def test_the_encoder_embeds(engine, t5, client):
    from raylm.engine.encode import EmbedRequest

    (prompt,) = mix(8, (14,))
    found = asyncio.run(engine.embed(EmbedRequest("e", tuple(prompt), normalize=False)))
    model = AutoModelForSeq2SeqLM.from_pretrained(t5).eval()
    with torch.no_grad():
        states = model.get_encoder()(torch.tensor([prompt])).last_hidden_state
    assert found.vector == pytest.approx(states[0].mean(0).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("bart", "BartForConditionalGeneration"), ("t5", "T5EncoderModel"), ("t5", "T5Model")],
)
def test_other_encoder_decoders_are_refused_by_name(t5, tmp_path, model_type, architecture):
    folder = tmp_path / "other"
    shutil.copytree(t5, folder)
    config = json.loads((folder / "config.json").read_text())
    changed = config | {"model_type": model_type, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=architecture) as error:
        load(folder, CONFIG, cache_root=tmp_path, digest="d")
    assert error.value.code == "unsupported-architecture"
