"""An installed wheel deploys without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helm.charts import ROOT, find_helm

CONFIG = """\
name: demo
serve: {models: [demo-int8]}
deploy:
  serving:
    store: {claim: models}
    api_keys: {existing_secret: raylm-keys}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with raylm's wheel; its dependencies are those of this one."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not here")
    place = tmp_path_factory.mktemp("wheel")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> None:
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run(uv, "build", "--quiet", "--wheel", "--out-dir", str(place / "dist"), str(ROOT))
    run(uv, "venv", "--quiet", "--python", sys.executable, str(place / "venv"))
    python = place / "venv/bin/python"
    (wheel,) = (place / "dist").glob("*.whl")
    run(uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", str(wheel))
    (site,) = (place / "venv/lib").glob("python*/site-packages")
    # Its own .pth files do not count from there, so not the one of an editable raylm.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_it_renders_a_release(python: Path, tmp_path: Path) -> None:
    find_helm()
    (tmp_path / "raylm.yaml").write_text(CONFIG)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-P", "-m", "raylm", "deploy", "render", "-o", "json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert "RayService" in {manifest["kind"] for manifest in made["manifests"]}


def test_it_has_the_files_of_the_checkout(python: Path, tmp_path: Path) -> None:
    code = (
        "import raylm.deploy.kubernetes.charts as c;"
        "print(c.chart_folder('raylm'), c.chart_folder('raylm-train'), c.kuberay_folder())"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    for found, ours in zip(
        done.stdout.split(), ("helm/raylm", "helm/raylm-train", "k8s/kuberay"), strict=True
    ):
        assert Path(found).is_relative_to(python.parents[1])
        assert files(Path(found)) == files(ROOT / ours)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (Path(place, name) for place, _, names in os.walk(folder, followlinks=True)
                     for name in names)
    }  # fmt: skip
