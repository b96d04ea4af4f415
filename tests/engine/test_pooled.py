"""Embeddings and classes of the torch engine, against transformers' own in f32."""

import asyncio
import json
import random
import shutil
import threading

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from raylm.config.engine import EngineConfig
from raylm.engine.encode import ClassifyRequest, EmbedRequest
from raylm.engine.load import load
from raylm.errors import ModelError, RaylmError, RequestError
from raylm.model.build import model_of_shape
from raylm.model.shapes import EncoderShape
from tests.engine.conftest import EOS, VOCAB_SIZE

CONFIG = EngineConfig(precision="f32", kv_cache_bytes=2**22, max_batch_size=5)
SHAPE = EncoderShape(64, 96, 2, 4, 128)
LABELS = ("bug", "question", "praise")
LENGTHS = (3, 40, 5, 128, 4, 90, 41, 1, 127)


def texts(lengths=LENGTHS):
    rng = random.Random(2)
    return [tuple(rng.randrange(2, VOCAB_SIZE) for _ in range(n)) for n in lengths]


def random_model(head, **more):
    torch.manual_seed(4)
    return model_of_shape(SHAPE, VOCAB_SIZE, {"eos": EOS}, head=head, **more)


@pytest.fixture(scope="module")
def bert(save_folder):
    return save_folder(random_model("masked"), sharper=4.0)


@pytest.fixture(scope="module")
def classifier(save_folder):
    return save_folder(random_model("classes", labels=LABELS), sharper=4.0)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    engines = []

    def start(folder, **changes):
        config = CONFIG.model_copy(update=changes)
        engines.append(load(folder, config, cache_root=tmp_path_factory.mktemp("e"), digest="d"))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def together(calls):
    async def gather():
        return await asyncio.gather(*calls)

    return asyncio.run(gather())


def embed(engine, inputs, **options):
    calls = [engine.embed(EmbedRequest(f"e{i}", ids, **options)) for i, ids in enumerate(inputs)]
    return together(calls)


def classify(engine, inputs, **options):
    calls = [
        engine.classify(ClassifyRequest(f"c{i}", ids, **options)) for i, ids in enumerate(inputs)
    ]
    return together(calls)


def last_states(folder, ids):
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()


def test_what_each_model_can_do(start, bert, classifier, llama):
    able = start(bert).capabilities()
    assert able.features == {"embed", "cancel"} and able.poolings == ("mean", "cls")
    assert (able.embedding_size, able.max_context_tokens) == (64, 128)
    assert start(classifier).capabilities().features == {"embed", "classify", "cancel"}
    able = start(llama, kind="torch").capabilities()
    assert {"generate", "embed"} <= able.features and able.poolings == ("mean", "last")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_equal_transformers(start, bert, pooling):
    inputs = texts()
    found = embed(start(bert), inputs, pooling=pooling, normalize=False)
    for ids, embedding in zip(inputs, found, strict=True):
        states = last_states(bert, ids)
        expected = states[0] if pooling == "cls" else states.mean(0)
        assert embedding.vector.dtype == np.float32 and embedding.num_tokens == len(ids)
        assert np.abs(embedding.vector - expected).max() < 1e-5


def test_an_embedding_does_not_depend_on_its_company(start, bert):
    engine = start(bert)
    inputs = texts()
    before = engine.stats().steps_total
    mixed = embed(engine, inputs)
    assert 2 <= engine.stats().steps_total - before < len(inputs)  # in batches, and in several
    for ids, embedding in zip(inputs, mixed, strict=True):
        (alone,) = embed(engine, [ids])
        assert np.abs(embedding.vector - alone.vector).max() < 1e-5
        assert np.linalg.norm(alone.vector) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_decoders_embed_beside_their_answers(start, llama, client, prompts, pooling):
    engine = start(llama, kind="torch")
    inputs = [ids for ids in texts() if len(ids) > 2]

    async def both():
        answers = asyncio.gather(
            *(client.chunks(engine, client.request(p, max_tokens=12)) for p in prompts[:4])
        )
        calls = (
            engine.embed(EmbedRequest(f"e{i}", ids, pooling=pooling, normalize=False))
            for i, ids in enumerate(inputs)
        )
        return await asyncio.gather(*calls), await answers

    found, answers = asyncio.run(both())
    for ids, embedding in zip(inputs, found, strict=True):
        states = last_states(llama, ids)
        expected = states[-1] if pooling == "last" else states.mean(0)
        assert np.abs(embedding.vector - expected).max() < 1e-5
    alone = [client.ask(engine, client.request(p, max_tokens=12))[0] for p in prompts[:4]]
    assert [client.ids(answer) for answer in answers] == [client.ids(answer) for answer in alone]


def test_classes_equal_transformers_in_any_company(start, classifier):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    inputs = texts()
    found = classify(start(classifier), inputs)
    assert len({classification.label for classification in found}) > 1
    for ids, classification in zip(inputs, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.softmax(-1)[0]
        assert classification.labels == LABELS
        assert classification.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        assert classification.label == LABELS[int(expected.argmax())]
        assert sum(classification.probabilities) == pytest.approx(1.0, abs=1e-6)


def test_several_labels_each_have_a_probability_of_their_own(start, classifier, tmp_path):
    folder = tmp_path / "several"
    shutil.copytree(classifier, folder)
    change(folder, problem_type="multi_label_classification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    (ids,) = texts((9,))
    (found,) = classify(start(folder), [ids])
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.sigmoid()[0]
    assert found.probabilities == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_decoder_reads_the_class_off_its_last_token(start, save_folder):
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=VOCAB_SIZE, max_position_embeddings=128, initializer_range=0.3,
        num_labels=3, pad_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    folder = save_folder(transformers.LlamaForSequenceClassification(config))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = texts()
    found = classify(start(folder), inputs)
    for ids, classification in zip(inputs, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.softmax(-1)[0]
        assert classification.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        assert classification.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("options", "length", "code", "param"),
    [
        ({}, 0, "empty_prompt", "prompt_ids"),
        ({}, 129, "context_length_exceeded", "prompt_ids"),
        ({"pooling": "last"}, 4, "invalid_value", "pooling"),
    ],
)
def test_what_cannot_be_embedded_is_a_400(start, bert, options, length, code, param):
    with pytest.raises(RequestError) as error:
        embed(start(bert), [(5,) * length], **options)
    assert (error.value.status, error.value.code, error.value.param) == (400, code, param)


def test_a_call_that_the_model_cannot_do_names_what_it_can(start, bert, classifier, client):
    with pytest.raises(RequestError, match=r"cannot classify; what it can do: embed$"):
        classify(start(bert), texts((3,)))
    with pytest.raises(RequestError, match=r"cannot generate; .* embed and classify$"):
        client.ask(start(classifier), client.request([5]))


def test_openvino_refuses_what_it_cannot_do(llama, cache_root, client):
    config = CONFIG.model_copy(update={"kind": "openvino"})
    engine = load(llama, config, cache_root=cache_root, digest=llama.name)
    with pytest.raises(RequestError, match=r"cannot embed; what it can do: generate$"):
        embed(engine, texts((3,)))
    engine.close()


def test_too_long_a_text_is_cut_only_where_that_is_asked_for(start, bert, classifier):
    engine = start(bert)
    (ids,) = texts((200,))
    cut, short = embed(engine, [ids, ids[:128]], truncate=True)
    assert cut.num_tokens == 128 and np.abs(cut.vector - short.vector).max() < 1e-5
    (found,) = classify(start(classifier), [ids], truncate=True)
    assert found.num_tokens == 128


def test_what_waited_longer_than_its_client_is_a_504(start, bert):
    with pytest.raises(RequestError) as error:
        embed(start(bert), texts((3,)), deadline_s=1.0)
    assert (error.value.status, error.value.code) == (504, "deadline_exceeded")


def test_a_text_that_is_cancelled_while_it_waits_is_never_encoded(start, bert):
    engine = start(bert)
    seen, entered, gate = [], threading.Event(), threading.Event()

    def wait(module, args, kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        entered.set()
        assert gate.wait(10)

    trunk = engine._loop._runner._encodings._encoder.trunk
    hook = trunk.register_forward_pre_hook(wait, with_kwargs=True)

    async def three():
        calls = []
        for name, ids in zip("abc", texts((100, 3, 4)), strict=True):
            calls.append(asyncio.create_task(engine.embed(EmbedRequest(name, ids))))
            await asyncio.sleep(0)
            assert await asyncio.to_thread(entered.wait, 10)  # `a` is in the model
        engine.cancel("b")
        calls[2].cancel()
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = asyncio.run(three())
    embed(engine, texts((5,)))  # a step after those
    hook.remove()
    assert first.num_tokens == 100
    assert isinstance(second, RequestError) and second.code == "cancelled"
    assert isinstance(third, asyncio.CancelledError)
    assert seen == [(1, 100), (1, 5)]


def test_a_batch_that_fails_takes_no_other_with_it(start, bert):
    engine = start(bert)
    encoder = engine._loop._runner._encodings._encoder

    def fail(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 50:
            raise RuntimeError("out of memory")

    hook = encoder.trunk.register_forward_pre_hook(fail, with_kwargs=True)

    async def two():
        calls = [engine.embed(EmbedRequest(str(i), ids)) for i, ids in enumerate(texts((100, 3)))]
        return await asyncio.gather(*calls, return_exceptions=True)

    broken, good = asyncio.run(two())
    hook.remove()
    assert broken.code == "engine-step-failed" and good.num_tokens == 3
    engine.health()


@pytest.mark.parametrize("num_bad", [1, 2])
def test_a_text_that_breaks_its_batch_fails_alone(start, bert, num_bad):
    engine = start(bert)
    inputs = texts((8, 9, 10, 11, 12))
    bad = [inputs[3], inputs[0]][:num_bad]
    encoder = engine._loop._runner._encodings._encoder

    def fail(module, args, kwargs):
        rows = kwargs["input_ids"].tolist()
        if any(tuple(row[: len(ids)]) == ids for row in rows for ids in bad):
            raise RuntimeError("no such token")

    async def all_of_them():
        calls = [engine.embed(EmbedRequest(str(i), ids)) for i, ids in enumerate(inputs)]
        return await asyncio.gather(*calls, return_exceptions=True)

    hook = encoder.trunk.register_forward_pre_hook(fail, with_kwargs=True)
    found = asyncio.run(asyncio.wait_for(all_of_them(), 30))
    hook.remove()
    for ids, item in zip(inputs, found, strict=True):
        if ids in bad:
            assert item.code == "engine-step-failed"
        else:
            assert item.num_tokens == len(ids)
    engine.health()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (0, 0)


def test_a_text_in_between_tells_that_the_engine_works(start, bert):
    engine = start(bert)
    encoder = engine._loop._runner._encodings._encoder

    def fail(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 50:
            raise RuntimeError("out of memory")

    hook = encoder.trunk.register_forward_pre_hook(fail, with_kwargs=True)
    for _ in range(4):
        with pytest.raises(RaylmError) as error:
            embed(engine, texts((100,)))
        assert error.value.code == "engine-step-failed"
        assert embed(engine, texts((3,)))[0].num_tokens == 3
    hook.remove()
    engine.health()


def change(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["pooling_mode_cls_token"], ("cls", "mean")),
        (["pooling_mode_mean_tokens"], ("mean", "cls")),
    ],
)
def test_a_folder_of_sentence_transformers_says_how_it_pools(
    start, bert, tmp_path, modes, expected
):
    folder = sentence_folder(bert, tmp_path, modes)
    engine = start(folder)
    assert engine.capabilities().poolings == expected
    (ids,) = texts((6,))
    own, named = embed(engine, [ids])[0], embed(engine, [ids], pooling=expected[0])[0]
    assert (own.vector == named.vector).all()


@pytest.mark.parametrize(
    ("modes", "more", "message"),
    [
        (["pooling_mode_max_tokens"], (), "pooling_mode_max_tokens"),
        (["pooling_mode_cls_token", "pooling_mode_mean_tokens"], (), "pooling_mode_mean_tokens"),
        (["pooling_mode_cls_token"], ("sentence_transformers.models.Dense",), "Dense"),
    ],
)
def test_steps_that_would_be_left_out_are_refused(start, bert, tmp_path, modes, more, message):
    folder = sentence_folder(bert, tmp_path, modes, more)
    with pytest.raises(ModelError, match=message):
        start(folder)


def sentence_folder(source, tmp_path, modes, more=()):
    folder = tmp_path / "sentence"
    shutil.copytree(source, folder)
    steps = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"path": f"{i}_{step}" if i else "", "type": f"sentence_transformers.models.{step}"}
        for i, step in enumerate(steps)
    ]
    modules += [{"path": "x", "type": name} for name in more]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(dict.fromkeys(modes, True)))
    return folder


def test_regressions_have_no_classes(start, classifier, tmp_path):
    folder = tmp_path / "regression"
    shutil.copytree(classifier, folder)
    change(folder, problem_type="regression")
    with pytest.raises(ModelError, match="regression"):
        start(folder)


def test_roberta_counts_its_positions_from_behind_the_padding(start, save_folder):
    torch.manual_seed(6)
    config = transformers.RobertaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=VOCAB_SIZE, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    folder = save_folder(transformers.RobertaForMaskedLM(config), sharper=4.0)
    engine = start(folder)
    assert engine.capabilities().max_context_tokens == 32
    inputs = texts((32, 20, 31))
    for ids, embedding in zip(inputs, embed(engine, inputs, normalize=False), strict=True):
        assert np.abs(embedding.vector - last_states(folder, ids).mean(0)).max() < 1e-5


def test_weights_that_are_missing_are_not_made_up(start, classifier, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(classifier, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a BertForSequenceClassification"):
        start(folder)


def test_auto_takes_torch_for_a_decoder_that_is_meant_for_embeddings(start, llama, tmp_path):
    folder = sentence_folder(llama, tmp_path, ["pooling_mode_lasttoken"])
    engine = start(folder)
    assert engine.capabilities().engine == "torch"
    assert engine.capabilities().poolings == ("last", "mean")
    (ids,) = texts((7,))
    (found,) = embed(engine, [ids], normalize=False)
    assert np.abs(found.vector - last_states(llama, ids)[-1]).max() < 1e-5
