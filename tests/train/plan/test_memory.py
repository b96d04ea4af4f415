import pytest

from raylm.config.train import TrainConfig
from raylm.model.presets import PRESETS
from raylm.model.shapes import EncoderDecoderShape
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.encoder import Encoder
from raylm.train.plan.encoder_decoder import EncoderDecoder
from raylm.train.plan.memory import MIB, Memory, host_bytes, peak_memory
from raylm.train.plan.subject import Subject

LARGE = Decoder(PRESETS["llama-1b"], 32_000, 2048)
SMALL = Decoder(PRESETS["llama-30m"], 8192, 512)
LONG = Decoder(PRESETS["llama-30m"], 8192, 2048)
T5 = EncoderDecoder(PRESETS["t5-60m"], 8192, 512, 512)
BERT = Encoder(PRESETS["bert-30m"], 8192, 512)


def of(subject: Subject, **changes: object) -> Memory:
    values = {"global_batch": 64, "micro_batch": 1, "workers": 4, **changes}
    return peak_memory(subject, TrainConfig.model_validate(values))


def test_the_parts_add_up_to_the_total() -> None:
    memory = of(SMALL)
    assert sum(memory.parts().values()) == memory.total_bytes
    assert set(memory.parts()) == {
        "parameters", "gradients", "optimizer", "communication", "activations", "loss",
        "allocator", "process",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "changes", "total", "activations", "loss", "allocator"),
    [
        # What the table in docs/plan.md was predicted with must not change unseen.
        (
            SMALL,
            {"zero": 2, "micro_batch": 4},
            2_932_073_664, 849_518_592, 83_886_080, 378_832_640,
        ),
        (
            SMALL,
            {"zero": 0, "micro_batch": 16, "activation_checkpointing": True},
            2_341_925_568, 696_352_768, 134_217_728, 60_000_000,
        ),
        (
            SMALL,
            {"zero": 3, "micro_batch": 4, "precision": "bf16", "mask_documents": False},
            2_414_377_920, 424_452_096, 234_881_024, 219_449_088,
        ),
        (
            LARGE,
            {"zero": 3, "precision": "bf16", "gpus_per_worker": 1.0, "offload": "optimizer"},
            8_786_366_310, 3_712_753_664, 917_504_000, 463_025_766,
        ),
        (
            Decoder(PRESETS["llama-1m"], 512, 64),
            {"zero": 1, "micro_batch": 16, "optimizer": {"name": "muon"}},
            1_218_956_864, 49_057_792, 7_077_888, 101_975_808,
        ),
    ],
)  # fmt: skip
def test_figures_of_decoders(
    subject: Decoder,
    changes: dict[str, object],
    total: int,
    activations: int,
    loss: int,
    allocator: int,
) -> None:
    found = of(subject, **changes)
    assert found.total_bytes == total
    assert (found.activations, found.loss, found.allocator) == (activations, loss, allocator)


@pytest.mark.parametrize(
    ("zero", "precision", "parameters", "optimizer"),
    [
        # Bytes of a parameter: weights; master weight and two moments, over four workers.
        (0, "fp32", 4, 8),
        (0, "bf16", 2, 12),
        (1, "fp32", 4, 12 / 4),
        (2, "bf16", 2, 12 / 4),
        (3, "bf16", 2 / 4 + 2 + 2, 12 / 4),
    ],
)
def test_what_zero_partitions(
    zero: int, precision: str, parameters: float, optimizer: float
) -> None:
    # Sequences so long that the backward pass is the fullest moment.
    memory = of(LONG, zero=zero, precision=precision, micro_batch=16)
    count = LONG.num_parameters
    assert memory.moment == "as the backward pass begins"
    assert memory.parameters == pytest.approx(parameters * count, rel=1e-6)
    assert memory.optimizer == pytest.approx(optimizer * count, rel=1e-6)


def test_zero_3_keeps_gathered_parameters_up_to_deepspeeds_limit() -> None:
    count = LARGE.num_parameters
    assert count > 10**9
    memory = of(LARGE, zero=3, precision="bf16")
    assert memory.parameters == pytest.approx(2 * (count / 4 + 10**9 + 5 * 10**7), rel=1e-6)


def test_gradients_of_earlier_micro_batches_count_only_where_there_are_any() -> None:
    one = of(LONG, zero=0, micro_batch=16, global_batch=64)
    several = of(LONG, zero=0, micro_batch=16, global_batch=128)
    assert several.gradients - one.gradients == 4 * LONG.num_parameters


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_and_a_lower_micro_batch_take_less(
    zero: int, precision: str
) -> None:
    full = of(SMALL, zero=zero, precision=precision, micro_batch=16)
    lower = of(SMALL, zero=zero, precision=precision, micro_batch=4)
    checkpointed = of(
        SMALL, zero=zero, precision=precision, micro_batch=16, activation_checkpointing=True
    )
    assert lower.total_bytes < full.total_bytes
    assert checkpointed.activations < full.activations / 3
    assert checkpointed.total_bytes < full.total_bytes


def test_more_workers_take_less_each_with_zero() -> None:
    totals = [of(LARGE, zero=2, workers=n).total_bytes for n in (2, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True)


def test_a_gpu_holds_whole_buckets_and_gives_back_what_is_freed() -> None:
    tiny = Decoder(PRESETS["llama-1m"], 512, 64)
    gpu = of(tiny, zero=2, precision="bf16", gpus_per_worker=1.0)
    cpu = of(tiny, zero=2, precision="bf16")
    assert gpu.moment == "as gradients are reduced"
    assert gpu.communication > 2 * 50_000_000
    assert gpu.activations == 0
    assert cpu.communication < 4 * MIB + 4 * tiny.num_parameters


def test_muon_keeps_one_moment_of_the_matrices_that_it_moves() -> None:
    adamw = of(LONG, zero=2, micro_batch=16)
    muon = of(LONG, zero=2, micro_batch=16, optimizer={"name": "muon"})
    shape = LONG.shape
    ends = 8192 * shape.hidden_size * (1 if shape.tie_embeddings else 2)
    saved = 4 * (LONG.num_parameters - ends) // 4
    assert adamw.optimizer - muon.optimizer == pytest.approx(saved, rel=1e-6)
    assert adamw.total_bytes - muon.total_bytes == pytest.approx(saved, rel=1e-6)


def test_fp16_takes_what_bf16_takes() -> None:
    gpu = {"gpus_per_worker": 1.0, "zero": 2}
    assert of(LARGE, precision="fp16", **gpu) == of(LARGE, precision="bf16", **gpu)


@pytest.mark.parametrize(
    ("zero", "offload", "host"),
    # Bytes of a parameter's share: master, moments and gradient; with the weights' copy.
    [
        (2, "none", 0),
        (1, "optimizer", 18),
        (2, "optimizer", 18),
        (3, "optimizer", 16),
        (3, "all", 18),
    ],
)
def test_what_is_offloaded_leaves_the_gpu_for_its_host(zero: int, offload: str, host: int) -> None:
    values = {"global_batch": 64, "micro_batch": 1, "workers": 4, "precision": "bf16"}
    values |= {"gpus_per_worker": 1.0, "zero": zero}
    kept = TrainConfig.model_validate(values)
    moved = TrainConfig.model_validate(values | {"offload": offload})
    count = LARGE.num_parameters
    assert host_bytes(LARGE, moved) == pytest.approx(host * count / 4, rel=1e-6)
    before, after = peak_memory(LARGE, kept), peak_memory(LARGE, moved)
    if host:
        assert after.optimizer == 0
        share = 2 * count // 4 if offload == "all" else 0
        assert before.parameters - after.parameters == pytest.approx(share, rel=1e-6)
        assert before.total_bytes - after.total_bytes >= 11 * count / 4


def test_on_a_cpu_offloading_saves_nothing() -> None:
    for zero in (1, 2, 3):
        assert (
            of(SMALL, zero=zero, offload="optimizer").total_bytes > of(SMALL, zero=zero).total_bytes
        )


@pytest.mark.parametrize("subject", [T5, BERT], ids=["t5", "bert"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_other_architectures_take_less_with_what_saves_memory(
    subject: Subject, zero: int, precision: str
) -> None:
    full = of(subject, zero=zero, precision=precision, micro_batch=16)
    assert sum(full.parts().values()) == full.total_bytes
    assert full.moment == "as the backward pass begins"
    lower = of(subject, zero=zero, precision=precision, micro_batch=4)
    checkpointed = of(
        subject, zero=zero, precision=precision, micro_batch=16, activation_checkpointing=True
    )
    assert lower.total_bytes < full.total_bytes
    assert checkpointed.activations < full.activations / 2
    assert checkpointed.total_bytes < full.total_bytes


@pytest.mark.parametrize("subject", [T5, BERT], ids=["t5", "bert"])
def test_zero_partitions_the_other_architectures_alike(subject: Subject) -> None:
    count = subject.num_parameters
    states = [of(subject, zero=zero, micro_batch=16).optimizer for zero in (0, 1, 2, 3)]
    assert states == pytest.approx([8 * count, 3 * count, 3 * count, 3 * count], rel=1e-6)
    whole, shared = (of(subject, zero=zero, micro_batch=16).parameters for zero in (2, 3))
    assert whole == 4 * count
    gathered = count + min(count, 50_000_000)
    assert shared == pytest.approx(4 * (count / 4 + gathered), rel=1e-6)


def test_attention_with_distances_grows_with_the_square_of_the_length() -> None:
    short, long = (
        of(
            EncoderDecoder(PRESETS["t5-60m"], 8192, size, size),
            micro_batch=16384 // size,
            workers=1,
        )
        for size in (256, 512)
    )
    weights, attentions = 4 * 8 * 16384, 6 + 6 + 6
    assert long.activations - short.activations == pytest.approx(
        (attentions + 2) * weights * 256, rel=0.02
    )
    # An encoder without distances keeps no weights, only a mask for all heads.
    short, long = (
        of(Encoder(PRESETS["bert-30m"], 8192, size), micro_batch=16384 // size, workers=1)
        for size in (256, 512)
    )
    assert long.activations - short.activations == 4 * 4 * 16384 * 256


def test_large_tables_of_scores_are_given_back_and_small_ones_stay_with_the_process() -> None:
    # A row of 512 tokens has weights of 8 MiB for eight heads, eight rows have 64 MiB; the rest
    # of a layer is in blocks of 2 MiB at most. Holes are of four layers, two of each stack.
    tiny = EncoderDecoder(EncoderDecoderShape(64, 128, 2, 2, 8, 8), 300, 512, 512)
    for num_rows, scores in ((1, 6 * 8 * MIB), (8, 0)):
        found = of(tiny, micro_batch=num_rows, zero=0, workers=1)
        config = TrainConfig(micro_batch=num_rows, workers=1)
        rows = sum(layer.rows for layer in tiny.batch_memory(config).layers)
        assert found.allocator == 60_000_000 + rows + scores


def test_only_tokens_that_are_hidden_have_logits() -> None:
    tokens = 16 * 512
    loss = of(BERT, micro_batch=16).loss
    assert 0.15 * tokens * 8192 * 8 < loss < 0.25 * tokens * 8192 * 8
    assert of(BERT, micro_batch=16, zero=3).loss == loss
    decoder = of(SMALL, micro_batch=16, zero=3).loss
    assert decoder == tokens * 8192 * 12


def test_the_whole_model_is_there_once_before_zero_3_cuts_it() -> None:
    found = of(LARGE, zero=3, precision="bf16", workers=64, activation_checkpointing=True)
    count = LARGE.num_parameters
    assert found.moment == "as the model is built"
    assert found.parameters == 4 * count + 2 * (count // 64)
    # A GPU's memory has no part in it.
    gpu = of(LARGE, zero=3, precision="bf16", workers=64, gpus_per_worker=1.0)
    assert gpu.moment != "as the model is built"
