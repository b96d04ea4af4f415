import subprocess
import sys
from pathlib import Path

import pytest

from raylm.deploy.haproxy import SCRIPT, haproxy_binary
from raylm.deploy.kubernetes.pod import STORE, prepare


def test_a_pod_has_the_script_and_the_models_of_the_claim(tmp_path: Path) -> None:
    if haproxy_binary() is None:
        pytest.skip("HAProxy is not installed")
    claim = tmp_path / "claim"
    (claim / "model" / "demo-0123").mkdir(parents=True)
    folder = tmp_path / "raylm"
    prepare(folder, claim)
    prepare(folder, claim)  # a container that starts again finds it as it left it
    assert folder.stat().st_mode & 0o777 == 0o700
    done = subprocess.run([folder / SCRIPT, "-v"], capture_output=True, text=True, check=True)
    assert "HAProxy version" in done.stdout
    assert [p.name for p in (folder / STORE / "model").iterdir()] == ["demo-0123"]


def test_without_a_claim_there_is_no_store(tmp_path: Path) -> None:
    if haproxy_binary() is None:
        pytest.skip("HAProxy is not installed")
    prepare(tmp_path / "raylm", tmp_path / "none")
    assert not (tmp_path / "raylm" / STORE).exists()


@pytest.mark.parametrize("name", ["pod", "probe"])
def test_what_starts_in_a_pod_loads_neither_ray_nor_torch(name: str) -> None:
    code = (
        f"import raylm.deploy.kubernetes.{name}, sys; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'ray', 'torch', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
