from pathlib import Path

import pytest

from k8s.local import importing, requirements
from k8s.local.__main__ import main
from raylm.errors import ConfigError


def test_without_root_it_is_skipped_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["up"]) == 0
    assert "SKIPPED: cluster-up: a cluster on this machine needs root" in capsys.readouterr().err
    assert main(["down"]) == 0
    # Others ask for something that there is not.
    assert main(["status"]) == 3
    assert "SKIPPED: cluster-down" in capsys.readouterr().err


def test_without_packages_it_is_skipped_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "environment", lambda: {"PATH": str(tmp_path)})
    assert main(["up"]) == 0
    lines = capsys.readouterr().err.splitlines()
    hint = next(line for line in lines if line.startswith("hint: apt-get install"))
    assert {"etcd-server", "containerd", "nftables"} <= set(hint.split())
    assert any(line.startswith("SKIPPED: cluster-up: packages are missing") for line in lines)


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file: .*none\.tar"):
        importing.import_archives([tmp_path / "none.tar"])
