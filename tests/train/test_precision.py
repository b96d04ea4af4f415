"""`precision: auto`: what it stands for, and that it stays."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from raylm.config.train import TrainConfig
from raylm.train.precision import faster, of_gpus, settle_precision

AUTO = TrainConfig(precision="auto", threads_per_worker=1)


@pytest.mark.parametrize(
    ("fp32", "bf16", "precision"),
    # The two machines of the first measurements, and what is not worth it.
    [(109e9, 358e9, "bf16"), (209e9, 153e9, "fp32"), (100e9, 119e9, "fp32"), (0, 0, "fp32")],
)
def test_on_cpus_the_faster_if_it_pays(fp32: float, bf16: float, precision: str) -> None:
    choice = faster(fp32, bf16)
    assert choice.precision == precision
    assert f"{fp32 / 1e9:,.0f} GFLOP/s in fp32" in choice.why


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [((8.0,), "bf16"), ((9.0, 8.6), "bf16"), ((9.0, 7.5), "fp32"), ((), "bf16")],
)
def test_on_gpus_bf16_where_all_have_units_for_it(
    capabilities: tuple[float, ...], precision: str
) -> None:
    assert of_gpus(capabilities).precision == precision


def test_it_is_chosen_once_and_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"

    def know(fp32: float, bf16: float) -> None:
        rates = {"fp32": fp32, "bf16": bf16}
        monkeypatch.setattr(
            "raylm.train.precision.measure_peak", lambda config, root: rates[config.precision]
        )

    know(1e9, 2e9)
    config, choice = settle_precision(AUTO, work, tmp_path, resume=True)
    assert choice is not None
    assert config == AUTO.model_copy(update={"precision": "bf16"})
    # A resumed run asks the run, not the machine; one that begins anew, the machine.
    know(1e9, 1e9)
    assert settle_precision(AUTO, work, tmp_path, resume=True) == (config, choice)
    assert settle_precision(AUTO, work, tmp_path, resume=False)[0].precision == "fp32"
    assert settle_precision(AUTO, work, tmp_path, resume=True)[0].precision == "fp32"


@pytest.mark.faults
def test_what_is_not_known_is_measured_and_remembered(tmp_path: Path) -> None:
    config, choice = settle_precision(AUTO, tmp_path / "work", tmp_path, resume=False)
    assert choice is not None
    assert config.precision == choice.precision
    rates = json.loads((tmp_path / "peaks.json").read_text())
    assert len(rates) == 2
    host = socket.gethostname()
    fp32, bf16 = (rates[f"{host} {p} 1 threads"]["flops"] for p in ("fp32", "bf16"))
    assert choice == faster(fp32, bf16)
    assert min(fp32, bf16) > 1e8


def test_a_given_precision_is_left_alone(tmp_path: Path) -> None:
    given = TrainConfig(precision="bf16")
    assert settle_precision(given, tmp_path / "work", tmp_path, resume=True) == (given, None)
    assert not (tmp_path / "work").exists()
