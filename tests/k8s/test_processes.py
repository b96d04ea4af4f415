import subprocess
import sys
from pathlib import Path

import pytest

from k8s.local import processes
from raylm.errors import HostError


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(processes, "PIDS", tmp_path / "pids")


def test_a_wait_ends_at_its_deadline_and_says_for_what() -> None:
    with pytest.raises(HostError, match=r"the moon: not within 0 s") as raised:
        processes.wait_until("the moon", lambda: False, 0.2)
    assert raised.value.code == "k8s-timeout"


def test_a_wait_ends_with_the_process_it_hangs_on_and_shows_its_log() -> None:
    process = processes.spawn("sick", ["sh", "-c", "echo no such table >&2; exit 7"])
    with pytest.raises(HostError) as raised:
        processes.wait_until("an answer", lambda: False, 20, dies_with=("sick", process))
    assert raised.value.code == "k8s-died"
    assert "ended with 7" in raised.value.message
    assert "no such table" in raised.value.message


def test_a_recorded_process_is_found_while_it_lives() -> None:
    process = processes.spawn("sleeper", ["sleep", "60"])
    try:
        processes.record("sleeper", process.pid)
        assert processes.recorded("sleeper") == process.pid
    finally:
        processes.kill_all([process.pid])
        process.wait(10)
    assert processes.recorded("sleeper") is None
    assert processes.names() == ["sleeper"]


def test_another_process_with_the_same_pid_is_not_taken_for_it(tmp_path: Path) -> None:
    process = processes.spawn("one", ["sleep", "60"])
    try:
        processes.record("one", process.pid)
        (tmp_path / "pids/one").write_text(f"{process.pid} 1\n")
        assert processes.recorded("one") is None
    finally:
        processes.kill_all([process.pid])
        process.wait(10)


def test_the_child_of_a_waiting_process_is_found() -> None:
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    process = processes.spawn("parent", [sys.executable, "-c", code])
    try:
        child = processes.only_child(process, "parent")
        assert Path(f"/proc/{child}/stat").read_text().split()[3] == str(process.pid)
    finally:
        processes.kill_all([process.pid, child])
        process.wait(10)


def test_killing_what_is_gone_is_no_error() -> None:
    process = subprocess.Popen(["true"])
    process.wait(10)
    processes.kill_all([process.pid])
