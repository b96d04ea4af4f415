"""cluster/onprem on three hosts with a real sshd each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raylm.deploy.environment import base_env
from raylm.store import Store
from tests.cluster.hosts import Host, hosts
from tests.tiny import write_tiny

# A cluster of real daemons takes minutes: not in `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
SSHD = """\
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PidFile none
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of keys, the configuration of sshd, and the list of hosts."""
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[list[Host]]:
    if shutil.which("sshd") is None:
        pytest.skip("sshd is not here: apt-get install openssh-server")
    for key in ("host_key", "user_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(words, check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "env").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}\n"
    )
    with hosts(3, folder) as found:
        sshd = f"mkdir -p /run/sshd && exec {shutil.which('sshd')} -D -e -f {folder}/sshd_config"
        for host in found:
            host.start("bash", "-c", sshd, env=base_env(), log=folder / "sshd.log")
        (folder / "list").write_text(
            "# head\n" + "".join(f"root@{host.address} --num-cpus=1\n" for host in found)
        )
        deadline_s = time.monotonic() + 30
        while any(call(folder)(["true"], host.address).returncode for host in found):
            assert time.monotonic() < deadline_s, (folder / "sshd.log").read_text()
            time.sleep(0.1)
        yield found


def call(folder: Path) -> Run:
    def run(words: list[str], address: str) -> subprocess.CompletedProcess[str]:
        command = [*ssh(folder), f"root@{address}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    return run


def ssh(folder: Path) -> list[str]:
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null",
               "LogLevel=ERROR", "ConnectTimeout=5"]  # fmt: skip
    return ["ssh", "-i", str(folder / "user_key"), *(w for o in options for w in ("-o", o))]


@pytest.fixture(scope="module")
def script(machines: list[Host], folder: Path) -> Run:
    """hosts.sh with the list of all, or of others."""
    env = base_env() | {
        "RAYLM_SSH": " ".join(ssh(folder)),
        "RAYLM_ENV": str(folder / "env"),
        "RAYLM_STATE": str(folder / "state"),
        "RAYLM_THERE": "/var/tmp/raylm",  # of each host alone
        "RAYLM_TMP": "/var/tmp/ray",
    }

    def run(action: str, listed: Path = folder / "list") -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "cluster/onprem/hosts.sh"), action, str(listed)]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def comms(host: Host) -> list[str]:
    return host.run("ps", "-e", "-o", "comm=").stdout.split()


def test_a_host_that_is_not_there_is_named_and_nothing_is_left(
    script: Run, machines: list[Host], tmp_path: Path
) -> None:
    away = machines[0].address.rpartition(".")[0] + ".77"
    (tmp_path / "list").write_text(f"root@{machines[0].address}\nroot@{away}\n")
    done = script("up", tmp_path / "list")
    assert done.returncode == 3
    assert f"root@{away}: Ray does not start" in done.stderr
    assert "raylet" not in comms(machines[0])


def test_jobs_run_on_the_hosts_for_who_has_the_token(
    script: Run, machines: list[Host], tmp_path: Path
) -> None:
    done = script("up")
    assert done.returncode == 0, done.stderr
    export, submit = done.stdout.splitlines()
    token = Path(export.partition("=")[2])
    assert oct(token.stat().st_mode)[-3:] == "600" and len(token.read_text()) == 64
    assert all("raylet" in comms(host) for host in machines)
    assert script("status").stdout == "3 of 3 nodes\n"

    config = write_tiny(tmp_path / "raylm.yaml")
    words = [sys.executable, "-m", "raylm", "submit", "data", "-c", str(config)]
    words += ["--store", str(tmp_path / "store"), "--address", submit.split()[-1]]
    env = base_env() | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}

    def asked(path: Path) -> subprocess.CompletedProcess[str]:
        given = env | {"RAY_AUTH_TOKEN_PATH": str(path)}
        return subprocess.run(
            words, env=given, capture_output=True, text=True, timeout=240, check=False
        )

    (tmp_path / "foreign").write_text("0" * 64)
    refused = asked(tmp_path / "foreign")
    assert refused.returncode == 3 and "token" in refused.stderr
    done = asked(token)
    assert done.returncode == 0, done.stderr
    assert [a.kind for a in Store(tmp_path / "store").list()] == ["dataset"]


def test_down_ends_it_everywhere(script: Run, machines: list[Host]) -> None:
    done = script("down")
    assert done.returncode == 0, done.stderr
    for host in machines:
        assert not {"raylet", "gcs_server"} & set(comms(host))
        assert host.run("ls", "/var/tmp/raylm").stdout == ""
