"""cluster/slurm on a Slurm of two nodes, from Debian's packages, that ends with the test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.deploy.environment import base_env
from raylm.store import Store
from tests.cluster.hosts import Host, hosts
from tests.tiny import write_tiny

# A cluster of real daemons takes minutes: not in `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """\
ClusterName=test
SlurmctldHost={head}
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
KillWait=30
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
MUNGE = """
set -e
for folder in run lib log; do
  mkdir -p /var/$folder/munge; mount -t tmpfs tmpfs /var/$folder/munge
  chown munge /var/$folder/munge; chmod 755 /var/$folder/munge
done
exec setpriv --reuid=munge --regid=munge --clear-groups \\
  munged --foreground --socket=/run/munge/munge.socket.2
"""


# In raylm's place: what it would find. `without` is what Ray says to who has another token.
LOOK = """#!{python}
import json, os, subprocess, sys
import ray
address, token = os.environ["RAYLM_HEAD"], os.environ["RAY_AUTH_TOKEN_PATH"]
ray.init(address=address, log_to_driver=False, logging_level="error")
foreign = {{**os.environ, "RAY_AUTH_TOKEN": "0" * 64}}
foreign.pop("RAY_AUTH_TOKEN_PATH")
code = "import ray; ray.init(address='" + address + "', log_to_driver=False)"
said = subprocess.run([sys.executable, "-c", code], env=foreign, capture_output=True, text=True)
print(json.dumps({{
    "nodes": len([n for n in ray.nodes() if n["Alive"]]),
    "cpus": ray.cluster_resources()["CPU"],
    "mode": oct(os.stat(token).st_mode), "size": os.stat(token).st_size,
    "without": "AuthenticationError" if "AuthenticationError" in said.stderr else said.stderr,
    "words": sys.argv[1:], "address": address,
}}), flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, dict[str, str]]]:
    """The first node, and the environment of who submits."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not here: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    with hosts(2, folder) as machines:
        nodes = [f"NodeName={m.name} NodeAddr={m.address} CPUs=2 RealMemory=4000" for m in machines]
        (folder / "slurm.conf").write_text(
            CONF.format(head=machines[0].name, folder=folder, nodes="\n".join(nodes))
        )
        env = base_env() | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "RAYLM_TMP": "/var/tmp/raylm",
            # Six processes start at once on what may be two busy cores.
            "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "240",
        }
        for machine in machines:
            machine.start("bash", "-c", MUNGE, env=env, log=folder / "munge.log")
        _wait(lambda: all(m.run("munge", "-n").returncode == 0 for m in machines), 30, folder)
        machines[0].start("slurmctld", "-D", env=env, log=folder / "ctld.log")
        for machine in machines:
            machine.start("slurmd", "-D", "-N", machine.name, env=env, log=folder / "d.log")

        def idle() -> bool:
            told = machines[0].run("sinfo", "--noheader", "--format=%T %D", env=env).stdout
            return told.split() == ["idle", "2"]

        _wait(idle, 60, folder)
        yield machines[0], env


def _wait(holds: object, timeout_s: float, folder: Path) -> None:
    assert callable(holds)
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        logs = [f"{p.name}: {p.read_text()[-1500:]}" for p in folder.glob("*.log")]
        assert time.monotonic() < deadline_s, "\n".join(logs)
        time.sleep(0.2)


def submit(
    slurm: tuple[Host, dict[str, str]], place: Path, *words: str, nodes: int = 2
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Submit the script and wait for the job; also what it wrote."""
    head, env = slurm
    out = place / "job.out"
    done = head.run(
        "sbatch", "--wait", f"--chdir={ROOT}", f"--output={out}", f"--nodes={nodes}",
        str(ROOT / "cluster/slurm/raylm.sbatch"), *words,
        env=env | {"RAYLM_CLUSTER": str(ROOT / "cluster"), "RAYLM_STATE": str(place / "state")},
        timeout_s=600,
    )  # fmt: skip
    return done, out.read_text() if out.exists() else ""


def test_the_command_finds_a_cluster_of_both_nodes_that_asks_for_a_token(
    slurm: tuple[Host, dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/raylm"
    command.write_text(LOOK.format(python=sys.executable))
    command.chmod(0o755)
    head, env = slurm
    path = f"{command.parent}:{env['PATH']}"
    done, out = submit((head, env | {"PATH": path}), tmp_path, "look")
    assert done.returncode == 7, out + done.stderr
    (line,) = [line for line in out.splitlines() if line.startswith("{")]
    seen = json.loads(line)
    assert seen["nodes"] == 2 and seen["cpus"] == 4
    assert (seen["mode"], seen["size"]) == ("0o100600", 64)
    assert seen["without"] == "AuthenticationError"
    assert seen["words"] == ["look", "--set", f"cluster.address={seen['address']}"]
    assert list((tmp_path / "state").iterdir()) == []


def test_a_run_makes_its_model_and_leaves_nothing(
    slurm: tuple[Host, dict[str, str]], tmp_path: Path
) -> None:
    config = write_tiny(tmp_path / "raylm.yaml")
    words = ["run", "-c", str(config), "--store", str(tmp_path / "store"), "--until", "train"]
    done, out = submit(slurm, tmp_path, *words)
    assert done.returncode == 0, out + done.stderr
    (model,) = Store(tmp_path / "store").list("model")
    assert model.manifest.name == "tiny"
    head, env = slurm
    for name in ("host0", "host1"):
        words = ["srun", f"--nodelist={name}", "ps", "-e", "-o", "comm="]
        left = head.run(*words, env=env).stdout
        assert "slurmd" in left and "raylet" not in left and "gcs_server" not in left


def test_a_wrong_configuration_is_the_jobs_exit_code(
    slurm: tuple[Host, dict[str, str]], tmp_path: Path
) -> None:
    done, out = submit(slurm, tmp_path, "run", "--set", "train.steppes=3", nodes=1)
    assert done.returncode == 2, out
    assert "steppes" in out
