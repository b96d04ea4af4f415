"""What cluster/ has for other machines, and docs/clusters.md: looked at without a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from raylm.cli import commands
from raylm.cli.submit import UNTIL
from raylm.config.load import load_config
from raylm.deploy.kubernetes.environment import pod_env
from raylm.deploy.submit import entrypoint

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/clusters.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
SCRIPTS = ["cluster/slurm/raylm.sbatch", "cluster/slurm/command.sh", "cluster/onprem/hosts.sh"]
OF_PODS = {"HOME", "PYTHONDONTWRITEBYTECODE", "RAY_START_HOOK"}


def test_the_environment_is_that_of_pods() -> None:
    told = "env -i bash -c '. cluster/env.sh && env'"
    done = subprocess.run(told, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    ours = {name: value for name, value in found.items() if name not in ("PWD", "SHLVL", "_")}
    pods = {name: value for name, value in pod_env("train").items() if name not in OF_PODS}
    assert ours == pods | {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).stat().st_mode & 0o111
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    done = subprocess.run(
        ["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_without_words_they_say_how_they_are_used(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / SCRIPTS[2]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "hosts.sh down HOSTS" in done.stderr
    (tmp_path / "none").write_text("# nobody\n")
    words = [ROOT / SCRIPTS[2], "up", tmp_path / "none"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "names no host" in done.stderr
    done = subprocess.run([ROOT / SCRIPTS[0]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr


def test_every_stage_has_a_line_in_the_page_that_is_a_command() -> None:
    load_config(ROOT / "cluster/jobs/run.yaml")
    submitted = [shlex.split(line) for line in LINES if line.startswith("raylm submit")]
    assert [words[2] for words in submitted] == ["data", "train", "eval", "compress"]
    batched = [shlex.split(line)[2:] for line in LINES if line.startswith("sbatch")]
    assert {words[0] for words in batched} == {"cluster/slurm/raylm.sbatch"}
    stages = [words[3] if words[1:3] == ["run", "--until"] else words[1] for words in batched[1:]]
    assert stages == ["data", "train", "evaluate", "compress", "serve"]
    assert [UNTIL[words[2]] for words in submitted] == stages[:4]
    for stage in stages[:4]:
        assert f"--until {stage} " in entrypoint(Path("/shared"), until=stage)


def test_the_words_for_raylm_are_understood() -> None:
    rest = [shlex.split(line)[1:] for line in LINES if line.startswith("raylm ")]
    rest += [shlex.split(line)[3:] for line in LINES if line.startswith("sbatch")]
    assert len(rest) == 10
    for name, *words in rest:
        module, attribute = commands.COMMANDS[name][0].split(":")
        function = getattr(__import__(module, fromlist=[attribute]), attribute)
        app = typer.Typer(add_completion=False)
        app.command()(function)
        typer.main.get_command(app).make_context(name, list(words))
