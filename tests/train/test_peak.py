import json
import socket
from pathlib import Path

import pytest

from raylm.config.train import TrainConfig
from raylm.train.peak import Measured, fresher, gpu_peak, known_peak, measure_peak, mfu


@pytest.mark.parametrize(
    ("name", "bf16_tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        # Alike by name, and not the same.
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_dense_peaks_of_gpus(name: str, bf16_tflops: float | None) -> None:
    found = gpu_peak(name, "bf16")
    assert found == (None if bf16_tflops is None else bf16_tflops * 1e12)


def test_fp32_is_without_tensor_cores() -> None:
    assert gpu_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12


def test_a_cpus_peak_is_measured_and_remembered(tmp_path: Path) -> None:
    config = TrainConfig(threads_per_worker=1)
    assert known_peak(config, tmp_path) is None
    found = measure_peak(config, tmp_path)
    assert found is not None
    # No core multiplies slower than 0.1 GFLOP/s or faster than 10 TFLOP/s.
    assert 1e8 < found < 1e13
    assert known_peak(config, tmp_path) == found
    assert known_peak(config.model_copy(update={"threads_per_worker": 2}), tmp_path) is None


def test_a_gpu_that_is_not_here_has_no_peak(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("raylm.train.peak.gpus", lambda: ())
    assert known_peak(TrainConfig(gpus_per_worker=1.0), tmp_path) is None


def test_of_several_gpus_the_slowest_counts_and_an_unknown_one_makes_all_unknown(
    tmp_path: Path, monkeypatch
) -> None:
    config = TrainConfig(gpus_per_worker=1.0, precision="bf16")
    here = [("NVIDIA H200", 1), ("NVIDIA A100-SXM4-80GB", 1)]
    monkeypatch.setattr("raylm.train.peak.gpus", lambda: tuple(here))
    assert known_peak(config, tmp_path) == 312e12
    here.append(("NVIDIA L40", 1))
    assert known_peak(config, tmp_path) is None


def test_mfu_is_a_share_of_the_peak_or_unknown() -> None:
    # torchtitan, Llama-3.1-8B on H100: 5,762 tokens/s, 34 % of 989 TFLOP/s.
    assert mfu(5762, 6 * 8.03e9 + 12 * 32 * 4096 * 8192, 989e12) == pytest.approx(0.356, abs=0.001)
    assert mfu(5762, 5e10, None) is None


DAY_S = 24 * 3600.0


@pytest.mark.parametrize(
    ("before", "flops", "days", "expected"),
    [
        (None, 1e9, 0, 1e9),
        (5e10, 1e9, 1, 5e10),  # the machine was busy
        (5e10, 6e10, 1, 6e10),  # it was busy before
        (5e10, 1e10, 31, 1e10),  # another machine by now
    ],
)
def test_the_faster_counts_and_what_is_old_does_not(
    before: float | None, flops: float, days: int, expected: float
) -> None:
    known = None if before is None else Measured(before, 100.0)
    assert fresher(known, Measured(flops, 100.0 + days * DAY_S)).flops == expected


def test_a_busy_machine_does_not_lower_what_is_remembered(tmp_path: Path, monkeypatch) -> None:
    config = TrainConfig(threads_per_worker=1)
    rates = iter([5e10, 1e9, 7e10])
    monkeypatch.setattr("raylm.train.peak.cpu_peak", lambda threads, precision: next(rates))
    assert [measure_peak(config, tmp_path) for _ in range(3)] == [5e10, 5e10, 7e10]
    assert known_peak(config, tmp_path) == 7e10
    (kept,) = json.loads((tmp_path / "peaks.json").read_text()).values()
    assert kept["flops"] == 7e10
    assert kept["time"] > 1.7e9


def test_a_rate_without_a_date_is_read_and_measured_anew(tmp_path: Path, monkeypatch) -> None:
    config = TrainConfig(threads_per_worker=1)
    key = f"{socket.gethostname()} fp32 1 threads"
    (tmp_path / "peaks.json").write_text(json.dumps({key: 9e10}))
    assert known_peak(config, tmp_path) == 9e10
    monkeypatch.setattr("raylm.train.peak.cpu_peak", lambda threads, precision: 5e10)
    assert measure_peak(config, tmp_path) == 5e10
