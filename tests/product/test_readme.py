"""The README's blocks, executed as they stand, with a configuration made small."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raylm.config import load_config
from raylm.store import Store

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "README.md").read_text()
(CONFIG,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
SMALL = {
    "model": {"preset": "llama-1m", "hidden_size": 64, "num_heads": 2, "num_layers": 2},
    "train": {"steps": 4, "global_batch": 4, "micro_batch": 2},
    "data": {"seq_len": 64, "held_out": 0.2, "tokenizer": {"vocab_size": 400}},
}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the README's raylm.yaml, made small, and a corpus."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(
        Path(sysconfig.get_path("stdlib"), "json"),
        folder / "corpus",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "as-written.yaml").write_text(CONFIG)
    write_config(folder)
    yield folder
    shell("raylm down", folder)


def write_config(folder: Path, **train: int) -> None:
    config = yaml.safe_load(CONFIG)
    for section, values in SMALL.items():
        config[section].update(values)
    config["train"].update(train)
    (folder / "raylm.yaml").write_text(yaml.safe_dump(config))


def shell(command: str, folder: Path) -> str:
    """Run one line in a shell, as its reader would."""
    environment = {
        **os.environ,
        "RAYLM_STORE": str(folder / "store"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_first_commands_are_those_of_the_makefile() -> None:
    assert SHELL[0] == "make demo\nmake test\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    plan = subprocess.run(
        ["make", "-n", "demo"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert plan.stdout.rstrip().endswith("raylm demo")


def test_the_config_is_valid_as_written(workplace: Path) -> None:
    assert load_config(workplace / "as-written.yaml").config.name == "notes"


def test_every_command_from_text_to_answers(workplace: Path) -> None:
    said = {line: shell(line, workplace) for line in SHELL[1].strip().splitlines()}
    assert '"id":"notes-int8"' in said["curl http://127.0.0.1:8000/v1/models"].replace(" ", "")
    assert "notes-int8" in said["raylm status"]


def test_a_model_that_is_there_already_is_served(workplace: Path) -> None:
    artifact = Store(workplace / "store").resolve("notes", "model")
    folder = workplace / "path" / "to" / "model"
    shutil.copytree(artifact.path, folder)
    (folder / "manifest.json").unlink()
    for line in SHELL[2].strip().splitlines():
        shell(line, workplace)


def test_a_run_is_handed_to_a_cluster(workplace: Path) -> None:
    write_config(workplace, steps=100_000)  # it is to be training still when it is stopped
    said = {line: shell(line, workplace) for line in SHELL[3].strip().splitlines()}
    assert "succeeded, exit code 0" in said["raylm submit data -c raylm.yaml"]
    assert "notes-train-" in said["raylm jobs ls"]
    assert "stopped" in said["raylm jobs stop notes-train"]


def test_the_tree_is_that_of_the_repository() -> None:
    (tree,) = re.findall(r"```\n(raylm/\n.*?)```", TEXT, re.DOTALL)
    inside = False
    for line in tree.splitlines():
        inside = inside or line.startswith("raylm/")
        for name in re.findall(r"[\w.]+/|\w+\.py", line[:28]):
            parent = ROOT / "raylm" if line.startswith("  ") else ROOT
            assert (parent / name).exists(), line


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
