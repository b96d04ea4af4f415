import pytest

from raylm.config.train import TrainConfig
from raylm.errors import HostError
from raylm.model.presets import PRESETS
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.encoder import Encoder
from raylm.train.plan.encoder_decoder import EncoderDecoder
from raylm.train.plan.fit import (
    candidates,
    changed,
    check_fits,
    fits,
    largest_micro_batch,
    micro_batches,
    nearest_fitting,
)
from raylm.train.plan.memory import PROCESS_BYTES, host_peak, peak_memory
from raylm.train.plan.subject import Subject

DECODER = Decoder(PRESETS["llama-30m"], 8192, 512)
CONFIG = TrainConfig(global_batch=64, micro_batch=16, workers=2, zero=1)
GIB = 2**30


def need(**changes: object) -> int:
    return peak_memory(DECODER, CONFIG.model_copy(update=changes)).total_bytes


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, [64, 32, 16, 8, 4, 2, 1]), (2, [32, 16, 8, 4, 2, 1]), (64, [1]), (3, []), (65, [])],
)
def test_micro_batches_make_up_the_global_batch(workers: int, expected: list[int]) -> None:
    assert micro_batches(CONFIG, workers) == expected


def test_candidates_change_what_costs_least_first() -> None:
    first = [changed(CONFIG, each) for each in candidates(CONFIG)][:12]
    assert first[:3] == [{}, {"train.micro_batch": "8"}, {"train.micro_batch": "4"}]
    assert first[5] == {"train.activation_checkpointing": "true"}
    assert first[10] == {"train.zero": "2"}
    kinds = [each.workers for each in candidates(CONFIG)]
    assert kinds == sorted(kinds)
    assert sorted(set(kinds)) == [2, 4, 8, 16, 32, 64]
    assert {each.global_batch for each in candidates(CONFIG)} == {64}


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (need(), {}),
        (need() - 1, {"train.micro_batch": "8"}),
        (need(micro_batch=1), {"train.micro_batch": "1"}),
    ],
)
def test_the_nearest_setting_that_fits(room: int, expected: dict[str, str]) -> None:
    found = nearest_fitting(DECODER, CONFIG, lambda config: room)
    assert found is not None
    assert changed(CONFIG, found) == expected
    assert fits(DECODER, found, lambda config: room)


def test_checkpointing_comes_when_no_micro_batch_fits_and_a_higher_stage_after_it() -> None:
    room = need(micro_batch=1) - 1
    found = nearest_fitting(DECODER, CONFIG, lambda config: room)
    assert found is not None
    assert (found.activation_checkpointing, found.zero, found.workers) == (True, 1, 2)
    # Where even that is too much, the stage: with its largest micro-batch, as it was asked.
    found = nearest_fitting(
        DECODER, CONFIG, lambda config: need(zero=2) if config.zero > 1 else 10**8
    )
    assert found is not None
    assert changed(CONFIG, found) == {"train.zero": "2"}


def test_more_workers_come_last_and_where_there_is_room_for_them() -> None:
    least = min(need(zero=zero, micro_batch=1, activation_checkpointing=True) for zero in (1, 2, 3))
    found = nearest_fitting(DECODER, CONFIG, lambda config: least - 1)
    assert found is not None
    assert found.workers == 4
    # One node for all: more workers only cut the same memory into smaller pieces.
    assert nearest_fitting(DECODER, CONFIG, lambda c: 2 * (least - 1) // c.workers) is None


@pytest.mark.parametrize("size", [1, 4, 32])
def test_the_largest_micro_batch(size: int) -> None:
    room = need(micro_batch=size)
    assert largest_micro_batch(DECODER, CONFIG, lambda config: room) == size


def test_no_micro_batch_fits_a_room_smaller_than_the_weights() -> None:
    assert largest_micro_batch(DECODER, CONFIG, lambda config: 4 * 10**7) is None


def test_what_does_not_fit_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(HostError) as caught:
        check_fits(DECODER, CONFIG, lambda config: need(micro_batch=4))
    error = caught.value
    assert (error.code, error.exit_code) == ("plan-does-not-fit", 3)
    assert f"a worker needs {need() / GIB:.2f} GiB (activations " in error.message
    assert f"has {need(micro_batch=4) / GIB:.2f} GiB" in error.message
    assert error.hint is not None
    assert error.hint.startswith("--set train.micro_batch=4 needs")


@pytest.mark.parametrize(
    "subject",
    [
        EncoderDecoder(PRESETS["t5-10m"], 8192, 512, 512),
        Encoder(PRESETS["bert-10m"], 8192, 512),
    ],
    ids=["t5", "bert"],
)
def test_the_other_architectures_are_fitted_alike(subject: Subject) -> None:
    def need(**changes: object) -> int:
        return peak_memory(subject, CONFIG.model_copy(update=changes)).total_bytes

    assert largest_micro_batch(subject, CONFIG, lambda config: need(micro_batch=8)) == 8
    found = nearest_fitting(subject, CONFIG, lambda config: need(micro_batch=4))
    assert found is not None
    assert changed(CONFIG, found) == {"train.micro_batch": "4"}
    least = need(micro_batch=1, activation_checkpointing=True)
    assert least < need(micro_batch=1)
    found = nearest_fitting(subject, CONFIG, lambda config: need(micro_batch=1) - 1)
    assert found is not None
    assert changed(CONFIG, found)["train.activation_checkpointing"] == "true"
    with pytest.raises(HostError) as caught:
        check_fits(subject, CONFIG, lambda config: need(micro_batch=4))
    assert str(caught.value.hint).startswith("--set train.micro_batch=4 needs")


def test_a_model_too_large_for_any_setting_says_so() -> None:
    with pytest.raises(HostError) as caught:
        check_fits(DECODER, CONFIG, lambda config: 10**6)
    assert "no setting of this model fits" in str(caught.value.hint)


def test_what_fits_or_is_not_to_be_checked_gives_its_memory() -> None:
    assert check_fits(DECODER, CONFIG, lambda config: need()).total_bytes == need()
    unchecked = CONFIG.model_copy(update={"check_memory": False})
    assert check_fits(DECODER, unchecked, lambda config: 1).total_bytes == need()


def test_a_training_without_workers_is_offered_none() -> None:
    alone = CONFIG.model_copy(update={"workers": 0})
    assert {each.workers for each in candidates(alone)} == {0}
    assert largest_micro_batch(DECODER, alone, lambda _: 10**15) == 64


GPU = CONFIG.model_copy(update={"gpus_per_worker": 1.0, "zero": 3, "offload": "all"})


def test_what_is_offloaded_must_fit_the_host() -> None:
    least = host_peak(DECODER, GPU)
    assert check_fits(DECODER, GPU, lambda _: 10**12, lambda _: least).total_bytes > 0
    without = host_peak(DECODER, GPU.model_copy(update={"offload": "none"}))
    assert without < least
    with pytest.raises(HostError) as caught:
        check_fits(DECODER, GPU, lambda _: 10**12, lambda _: without)
    assert caught.value.code == "plan-does-not-fit"
    assert f"needs {least / GIB:.2f} GiB of its host's memory (what is offl" in caught.value.message
    assert str(caught.value.hint).startswith("--set train.offload=none needs")
    # Where the GPU has no room for it, more workers, each with a smaller share.
    with pytest.raises(HostError, match="host's memory") as caught:
        check_fits(
            DECODER, GPU, lambda config: 10**12 if config.offload == "all" else 1, lambda _: without
        )
    assert "--set train.workers=8" in str(caught.value.hint)


def test_every_worker_builds_the_whole_model_in_its_hosts_memory() -> None:
    plain = GPU.model_copy(update={"offload": "none", "workers": 64, "micro_batch": 1})
    assert host_peak(DECODER, plain) == PROCESS_BYTES + 4 * DECODER.num_parameters
    with pytest.raises(HostError, match="the whole model in fp32"):
        check_fits(DECODER, plain, lambda _: 10**12, lambda _: PROCESS_BYTES)


def test_on_a_cpu_not_to_offload_is_the_nearest() -> None:
    config = CONFIG.model_copy(update={"offload": "optimizer"})
    found = nearest_fitting(DECODER, config, lambda _: need())
    assert found is not None
    assert changed(config, found) == {"train.offload": "none"}
