import resource
import socket
from pathlib import Path

import pytest

from raylm.config import load_config
from raylm.deploy.host import Check, examine


def checks(store: Path, *sets: str) -> dict[str, Check]:
    return {check.name: check for check in examine(load_config(None, sets).config, store)}


def test_a_fit_machine_has_no_red_line(tmp_path: Path) -> None:
    found = checks(tmp_path / "not-there-yet", "train.workers=1")
    assert [c for c in found.values() if c.state == "fail"] == []
    assert {"python", "ray", "torch", "cores", "memory", "store", "/dev/shm", "gpu"} <= set(found)
    assert not (tmp_path / "not-there-yet").exists()


@pytest.mark.parametrize(
    ("override", "name", "word"),
    [
        ("train.workers=64", "cores", "train.workers"),
        (f"cluster.object_store_bytes={2**50}", "/dev/shm", "object_store_bytes"),
    ],
)
def test_each_red_line_has_a_remedy(tmp_path: Path, override: str, name: str, word: str) -> None:
    extra = ["train.global_batch=512"] if "workers" in override else []
    check = checks(tmp_path, override, *extra)[name]
    assert check.state == "fail"
    assert check.remedy is not None
    assert word in check.remedy


def test_too_few_open_files_are_red_and_say_for_how_many_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 2048))
    check = checks(tmp_path)["open files"]
    assert check.state == "fail" and "768 clients" in check.found
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    check = checks(tmp_path)["open files"]
    assert check.state == "ok" and "16384 clients" in check.found


def test_a_port_in_use_is_named_with_its_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = checks(tmp_path, f"serve.port={port}")[f"port {port}"]
    assert check.state == "warn"
    assert "serve.port" in (check.remedy or "")


def test_a_store_below_a_file_is_red(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = checks(tmp_path / "file" / "store")["store"]
    assert check.state == "fail"
