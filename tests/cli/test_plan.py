"""`raylm plan` where no dataset is there yet; with one it is in tests/integration."""

from collections.abc import Callable

import pytest

from raylm.model.presets import PRESETS
from raylm.train.plan.room import Node

GIB = 2**30
SMALL = ("--set", "model.preset=llama-30m", "--set", "data.seq_len=256")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine of 16 GiB whose cores multiply at 50 GFLOP/s each."""

    def set_memory(size: int) -> None:
        monkeypatch.setattr("raylm.plan.this_node", lambda num_cpus: Node(num_cpus, size))

    set_memory(16 * GIB)
    monkeypatch.setattr("raylm.plan.measure_peak", lambda config, root: 50e9)
    return set_memory


def test_json_has_every_number(raylm) -> None:
    sets = ("--set", "train.steps=50", "--set", "train.global_batch=32", "--set", "train.zero=1")
    done = raylm("plan", *SMALL, *sets, "-o", "json")
    assert done.code == 0, done.err
    found = done.json
    count = PRESETS["llama-30m"].num_parameters(8192)
    assert found["model"]["num_parameters"] == count
    assert found["fits"] is True
    assert found["room_bytes"] == 8 * GIB
    assert found["train"]["workers"] == 2
    parts = [v for k, v in found["memory"].items() if k not in ("moment", "total_bytes")]
    assert sum(parts) == found["memory"]["total_bytes"]
    assert found["largest_micro_batch"] == 16
    assert found["disk"]["checkpoint_bytes"] == 16 * count
    assert found["disk"]["dataset_bytes"] is None
    assert found["pace"]["tokens"] == 50 * 32 * 256
    assert found["pace"]["peak_flops"] == 100e9
    assert found["pace"]["tokens_per_s"] < found["pace"]["roofline_tokens_per_s"]
    assert found["expected_s"] == pytest.approx(50 * 32 * 256 / found["pace"]["tokens_per_s"])
    assert (found["probe"], found["mfu"], found["nearest"]) == (None, None, {})
    assert any(line.startswith("the dataset") for line in found["unknown"])


def test_text_has_units_and_says_what_is_not_known(raylm) -> None:
    out = raylm("plan", *SMALL, "--set", "train.time_s=3600").out
    assert out.startswith("33.7M parameters, 256 tokens a sequence, 2 workers, ZeRO 2, fp32")
    for line in ("memory of a worker", "largest micro-batch that fits ", "tokens/s", "1 h 00 min",
                 "the dataset", "100 GFLOP/s", "8.0 GiB", "not known: the dataset"):  # fmt: skip
        assert line in out


def test_what_does_not_fit_is_code_3_with_the_nearest_that_does(raylm, machine) -> None:
    machine(6 * GIB)
    sets = ("--set", "train.global_batch=64", "--set", "train.micro_batch=32")
    done = raylm("plan", *SMALL, *sets, "-o", "json")
    assert done.code == 3
    found = done.json
    assert found["fits"] is False
    assert found["memory"]["total_bytes"] > found["room_bytes"]
    assert list(found["nearest"]) == ["train.micro_batch"]
    nearest = found["nearest"]["train.micro_batch"]
    assert int(nearest) == found["largest_micro_batch"] < 32
    assert "error[plan-does-not-fit]" in done.err
    assert f"--set train.micro_batch={nearest}" in done.err
    again = raylm("plan", *SMALL, *sets, "--set", f"train.micro_batch={nearest}", "-o", "json")
    assert again.code == 0
    assert again.json["fits"] is True


@pytest.mark.parametrize(
    ("preset", "format", "architecture", "count"),
    [
        ("t5-10m", "pairs", "encoder-decoder", PRESETS["t5-10m"].num_parameters(8192)),
        ("bert-10m", "text", "encoder", PRESETS["bert-10m"].num_parameters(8192)),
    ],
)
def test_the_other_architectures_have_a_plan(
    raylm, machine, preset: str, format: str, architecture: str, count: int
) -> None:
    sets = ("--set", f"model.preset={preset}", "--set", f"data.format={format}")
    done = raylm("plan", *sets, "-o", "json")
    assert done.code == 0, done.err
    found = done.json
    assert found["model"]["architecture"] == architecture
    assert found["model"]["num_parameters"] == count
    assert found["memory"]["activations"] > 0
    assert found["disk"]["checkpoint_bytes"] == 16 * count
    assert found["pace"]["tokens_per_s"] > 0
    machine(4 * GIB)
    sets += ("--set", "train.global_batch=64", "--set", "train.micro_batch=32")
    done = raylm("plan", *sets, "-o", "json")
    assert done.code == 3
    nearest = done.json["nearest"]["train.micro_batch"]
    assert int(nearest) == done.json["largest_micro_batch"] < 32


def test_a_model_that_cannot_learn_from_the_data_is_refused(raylm) -> None:
    done = raylm("plan", "--set", "model.preset=t5-10m")
    assert done.code == 2
    assert "error[objective-model]" in done.err


def test_a_cluster_elsewhere_is_not_judged_by_this_machine(raylm, machine) -> None:
    machine(1)
    done = raylm("plan", *SMALL, "--set", "cluster.address=10.0.0.5:6379", "-o", "json")
    assert done.code == 0
    assert done.json["fits"] is None
    assert any("10.0.0.5:6379" in line for line in done.json["unknown"])


def test_a_probe_needs_the_dataset(raylm) -> None:
    done = raylm("plan", *SMALL, "--probe")
    assert done.code == 3
    assert "error[plan-no-dataset]" in done.err
    assert "raylm data" in done.err


def test_an_unknown_preset_gets_the_nearest(raylm) -> None:
    done = raylm("plan", "--set", "model.preset=llama-30")
    assert done.code == 2
    assert "did you mean" in done.err


def test_what_the_disk_does_not_hold_is_code_3_with_what_does(
    raylm, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 16 * PRESETS["llama-30m"].num_parameters(8192)
    free = 3 * size
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("raylm.plan.psutil.disk_usage", lambda path: usage)
    done = raylm("plan", *SMALL, "-o", "json")
    assert done.code == 3
    found = done.json
    assert (found["fits"], found["fits_disk"]) == (True, False)
    assert found["nearest"] == {"train.checkpoint.keep": "1"}
    assert "error[plan-disk-too-small]" in done.err
    assert "--set train.checkpoint.keep=1 fits" in done.err
    again = raylm("plan", *SMALL, "--set", "train.checkpoint.keep=1", "-o", "json")
    assert again.code == 0
    assert again.json["fits_disk"] is True
    forced = raylm("plan", *SMALL, "--set", "train.check_disk=false", "-o", "json")
    assert (forced.code, forced.json["fits_disk"]) == (0, False)


def test_more_workers_than_cores_are_no_matter_of_memory(raylm) -> None:
    sets = ("--set", "train.workers=64", "--set", "train.global_batch=512")
    done = raylm("plan", *SMALL, *sets, "--set", "cluster.num_cpus=2", "-o", "json")
    assert done.code == 3
    found = done.json
    assert (found["fits"], found["room_bytes"], found["nearest"]) == (None, None, {})
    assert found["not_placed"] == "cannot be placed: 64 CPUs wanted, 2 here"
    assert "error[cluster-too-small]: the workers cannot be placed: 64 CPUs wanted" in done.err
    assert "smaller" not in done.err


def test_gpus_that_are_not_here_are_not_known(raylm) -> None:
    sets = ("--set", "train.gpus_per_worker=1", "--set", "train.workers=1")
    done = raylm("plan", *SMALL, *sets, "-o", "json")
    assert done.code == 0, done.err
    found = done.json
    assert (found["fits"], found["room_bytes"], found["host_room_bytes"]) == (None, None, None)
    assert found["not_placed"] == "GPUs cannot be seen from here"
    assert any("GPUs cannot be seen from here" in line for line in found["unknown"])
    text = raylm("plan", *SMALL, *sets).out
    assert "not known: whether a worker's memory is enough: GPUs cannot be seen" in text


def test_an_offloaded_optimizer_must_fit_the_host(raylm, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(8, 2 * GIB, (64 * GIB,))
    monkeypatch.setattr("raylm.plan.this_node", lambda num_cpus: node)
    sets = ("--set", "train.gpus_per_worker=1", "--set", "train.workers=1",
            "--set", "model.preset=llama-100m")  # fmt: skip
    offloaded = raylm("plan", *sets, "--set", "train.offload=optimizer", "-o", "json")
    assert offloaded.code == 3
    assert offloaded.json["nearest"] == {"train.offload": "none"}
    assert offloaded.json["host_peak_bytes"] > offloaded.json["host_room_bytes"] == 2 * GIB
    assert "of its host's memory" in offloaded.err
    assert raylm("plan", *sets, "-o", "json").code == 0
