"""docs/helm.md and the READMEs of the charts say what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raylm.cli import main
from raylm.config.load import load_config
from raylm.deploy.kubernetes.values import chart_values, train_values
from tests.helm.charts import CHARTS, ROOT, helm

PAGE = (ROOT / "docs/helm.md").read_text()


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def test_the_config_of_the_page_gives_values_of_both_charts(tmp_path: Path) -> None:
    (text,) = blocks(PAGE, "yaml")
    (tmp_path / "raylm.yaml").write_text(text)
    config = load_config(tmp_path / "raylm.yaml").config
    assert chart_values(config)["models"] == [{"ref": "demo-int8"}]
    assert train_values(config)["store"] == {"claim": "models"}


def test_every_command_of_the_page_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that ask a cluster are told that there is none; a wrong option would be said before."""
    helm("version")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raylm.yaml").write_text(blocks(PAGE, "yaml")[0])
    lines = blocks(PAGE, "sh")[0].strip().splitlines()
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line, comments=True)
        code = main(words[1:])
        said = capsys.readouterr().err
        expected = 0 if words[2] == "render" else 3
        assert code == expected, f"{line}\n{said}"
        assert expected == 0 or "error[kubernetes-unreachable]" in said, said


def test_a_typo_is_told_as_the_page_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"```\n(\$ helm .*?)```", PAGE, re.DOTALL)
    command, said = block.strip().splitlines()
    values = CHARTS / "raylm/ci/minimal-values.yaml"
    words = [str(values) if word == "values.yaml" else word for word in shlex.split(command)[2:]]
    words = [str(ROOT / word) if word == "helm/raylm" else word for word in words]
    done = helm(*words, "--dry-run=client")
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("chart", ["raylm", "raylm-train"])
def test_the_readmes_commands_install_what_they_say(chart: str, tmp_path: Path) -> None:
    text = (CHARTS / chart / "README.md").read_text().split("## Install")[1]
    (tmp_path / "run.yaml").write_text("config: {name: nightly}\n")
    command = blocks(text, "sh")[0].replace("\\\n", " ").splitlines()[0]
    words = shlex.split(command)
    assert words[:2] == ["helm", "install"]
    places = {f"helm/{chart}": str(CHARTS / chart), "run.yaml": str(tmp_path / "run.yaml")}
    done = helm("template", *(places.get(word, word) for word in words[2:]))
    assert done.returncode == 0, done.stderr
    assert "claimName: models" in done.stdout
