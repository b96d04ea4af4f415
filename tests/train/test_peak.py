from pathlib import Path

import pytest

from raylm.config.train import TrainConfig
from raylm.train.peak import gpu_peak, known_peak, measure_peak, mfu


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
