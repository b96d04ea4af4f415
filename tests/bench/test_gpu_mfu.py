"""benchmarks/gpu_mfu.py, as far as it goes without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_mfu import CASES, SIZES, TRAINING, last_line, measure, parse, summary
from raylm.config import load_config
from raylm.model.presets import preset_shape
from raylm.train.metrics import MetricsLog, read_metrics
from raylm.train.recent import WINDOW_STEPS

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_mfu.py"


@pytest.mark.parametrize("size", SIZES)
def test_models_are_as_large_as_they_are_called(size: str) -> None:
    preset, vocab_size = SIZES[size]
    found = preset_shape(preset).num_parameters(vocab_size) / 1e6
    assert found == pytest.approx(int(size.removesuffix("M")), abs=0.05)


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_a_configuration(case: str) -> None:
    changes = {**TRAINING, **CASES[case], "train.steps": 40, "train.micro_batch": 64}
    config = load_config(None, [f"{key}={value}" for key, value in changes.items()]).config.train
    assert (config.precision, config.gpus_per_worker, config.max_workers) == ("bf16", 1, 1)
    assert config.liger == (case in ("liger", "both"))
    assert config.compile == (case in ("compile", "both"))


def test_its_options_are_read_and_too_few_steps_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse([]).steps == WINDOW_STEPS + 8
    found = parse(["--sizes", "350M", "--only", "plain", "both", "--micro-batch", "4"])
    assert (found.sizes, found.only, found.micro_batch) == (["350M"], ["plain", "both"], 4)
    with pytest.raises(SystemExit):
        parse(["--steps", "33"])
    assert "more than 33" in capsys.readouterr().err


def test_without_a_gpu_it_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(SCRIPT.parent.parent)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "no GPU is here" in done.stderr


def test_a_model_whose_memory_cannot_be_known_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # nvidia-smi is not there
    (why,) = measure(tmp_path / "store", "124M", "plain", parse([]))
    assert why.startswith("no micro-batch is known to fit")


def test_figures_are_those_of_the_last_steps_of_a_metrics_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", from_step=0)
    elapsed_s = 0.0
    for step in range(1, 41):
        elapsed_s += 2.0 if step > 8 else 30.0
        log.write(
            step=step, time=elapsed_s, loss=5.0, tokens=step * 1000, elapsed_s=elapsed_s,
            mfu=0.5 if step == 40 else 0.1, max_memory_bytes=step * 2**30,
        )  # fmt: skip
        if step == 20:
            log.write(step=step, time=elapsed_s, held_out_loss=5.0)
    log.write(step=40, time=elapsed_s, peak_memory_bytes=40 * 2**30)
    log.close()
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert summary(lines) == ["500", "50.0%", "40.0"]
    unknown = [{**line, "mfu": None} for line in lines]
    assert summary(unknown)[1] == "unknown"


def test_the_error_of_a_command_is_found_in_what_it_said() -> None:
    said = "training 3/40\nerror[plan-does-not-fit]: too large\nhint: take a smaller one\n"
    assert last_line(said) == "error[plan-does-not-fit]: too large"
    assert last_line("Killed\n") == "Killed"
    assert last_line("") == "it said nothing"
