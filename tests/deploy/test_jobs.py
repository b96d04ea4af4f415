"""Jobs on a real cluster, by the command line and by the class behind it."""

import json
import os
import pty
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raylm.config.cluster import ClusterConfig
from raylm.deploy import cluster
from raylm.deploy.dashboard import find_dashboard
from raylm.deploy.jobs import Job, Jobs
from raylm.deploy.record import ClusterInfo
from raylm.stage import CHECKPOINTS
from raylm.store import Store
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import read_signs
from tests.product.processes import end, start, stop_all

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
name: tiny
data:
  paths: texts/json
  pattern: "**/*.py"
  seq_len: 64
  held_out: 0.2
  tokenizer: {vocab_size: 400}
"""
TRAINING = [
    word
    for change in (
        "train.steps=100000", "train.workers=1", "train.global_batch=2", "train.micro_batch=2",
        "train.checkpoint.every_steps=20", "train.checkpoint.grace_s=47", "model.num_layers=1",
        "model.preset=llama-1m", "model.hidden_size=32", "model.intermediate_size=64",
        "model.num_heads=2",
    )
    for word in ("--set", change)
]  # fmt: skip
SLEEPER = "exec python -c 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def info(store: Store) -> Iterator[ClusterInfo]:
    config = ClusterConfig(object_store_bytes=100 * 2**20, num_cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        # Jobs run this raylm, and not another that is installed.
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        found = cluster.up(store, config)
    yield found
    cluster.down(store, drain_s=0)


@pytest.fixture(scope="module")
def jobs(store: Store, info: ClusterInfo) -> Jobs:
    return Jobs(find_dashboard(store))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "texts").mkdir()
    (folder / "texts" / "json").symlink_to(Path(sysconfig.get_path("stdlib"), "json"))
    (folder / "raylm.yaml").write_text(CONFIG)
    return folder / "raylm.yaml"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    stop_all()


def raylm(*arguments: str, store: Path) -> tuple[int, str, str]:
    process = start(*arguments, store=store)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait(condition: Callable[[], bool], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.2)


def sleeper(jobs: Jobs, name: str) -> int:
    """Submit a job that sleeps; the number of its process."""
    jobs.submit(name, SLEEPER, runtime_env={}, metadata={})
    wait(lambda: any(line.isdigit() for line in jobs.log(name).splitlines()))
    return next(int(line) for line in jobs.log(name).splitlines() if line.isdigit())


def test_a_job_does_what_run_does_here(config: Path, store: Store, jobs: Jobs) -> None:
    code, out, err = raylm("submit", "data", "-c", str(config), "-o", "json", store=store.root)
    assert code == 0, err
    document = json.loads(out)
    assert (document["state"], document["exit_code"], document["error"]) == ("succeeded", 0, None)
    (stage,) = document["result"]["stages"]
    assert (stage["stage"], stage["state"]) == ("data", "done")
    assert store.resolve(stage["ref"]).manifest.metrics["num_files"] == 5
    assert document["metadata"]["stage"] == "data"
    assert "data: " in err, "what the job says is shown"
    assert "\n{" not in err, "and its result is not"
    # Relative paths, names and all: nothing is left to do here.
    code, out, err = raylm("data", "-c", str(config), "-o", "json", store=store.root)
    assert code == 0, err
    (here,) = json.loads(out)["stages"]
    assert (here["state"], here["ref"], here["key"]) == ("skipped", stage["ref"], stage["key"])


def test_a_shipped_raylm_goes_on_when_its_client_is_killed(
    config: Path, store: Store, jobs: Jobs
) -> None:
    before = {job.id for job in jobs.list()}
    client = start("submit", "data", "-c", str(config), "--ship", store=store.root)
    assert client.stderr is not None
    said = client.stderr.readline()
    assert said.startswith("submitted tiny-data-"), said
    client.kill()
    client.communicate(timeout=60)
    (job_id,) = {job.id for job in jobs.list()} - before
    code, out, err = raylm("jobs", "logs", "-f", job_id, "-o", "json", store=store.root)
    assert code == 0, err
    document = json.loads(out)
    assert document["id"] == job_id
    assert document["result"]["stages"][0]["state"] == "skipped"


def test_a_job_that_fails_passes_on_its_error_and_its_exit_code(
    config: Path, store: Store, jobs: Jobs
) -> None:
    arguments = ["submit", "data", "-c", str(config), "--set", "data.paths=text/json"]
    code, out, err = raylm(*arguments, store=store.root)
    assert code == 1
    assert "error[data-missing-path]: text/json" in err
    assert "hint: its folder" in err
    assert "failed, exit code 1" in out
    job = jobs.list()[-1]
    code, out, _ = raylm("jobs", "status", job.id, "-o", "json", store=store.root)
    assert code == 0, "the question was answered"
    assert json.loads(out)["exit_code"] == 1
    assert json.loads(out)["error"]["code"] == "data-missing-path"


@pytest.mark.parametrize(
    ("entrypoint", "code"),
    [
        ("exec python -m raylm run --set train.zero=9", 2),
        ("exit 4", 4),
        ("kill -9 $$", 137),
    ],
)
def test_every_exit_code_is_the_jobs(jobs: Jobs, store: Store, entrypoint: str, code: int) -> None:
    name = f"code-{code}"
    jobs.submit(name, entrypoint, runtime_env={}, metadata={})
    found, out, err = raylm("jobs", "logs", "-f", name, store=store.root)
    assert found == code, err
    assert f"job {name} failed, exit code {code}" in out


def test_ctrl_c_and_sigterm_leave_the_job_alone_and_stop_ends_it(jobs: Jobs, store: Store) -> None:
    pid = sleeper(jobs, "sleeper-one")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        client = start("jobs", "logs", "-f", "sleeper-one", store=store.root)
        assert client.stderr is not None
        while client.stderr.readline().strip() != str(pid):
            assert client.poll() is None
        said = end(client, number)
        assert client.returncode == code
        assert "sleeper-one goes on without this command" in said
        assert "raylm jobs stop sleeper-one" in said
        assert "Traceback" not in said
    assert jobs.get("sleeper-one").state == "running"
    assert psutil.pid_exists(pid)
    code, out, err = raylm("jobs", "stop", "sleeper-o", "-o", "json", store=store.root)
    assert code == 0, err
    stopped = json.loads(out)
    assert (stopped["state"], stopped["exit_code"], stopped["was_running"]) == (
        "stopped", 143, True,
    )  # fmt: skip
    assert not psutil.pid_exists(pid)
    code, out, _ = raylm("jobs", "stop", "sleeper-one", "-o", "json", store=store.root)
    assert (code, json.loads(out)["was_running"]) == (0, False)


@pytest.fixture
def by_address(info: ClusterInfo, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What names the cluster to a client that knows its address and its token's file alone."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", info.env["RAY_AUTH_TOKEN_PATH"])
    return ("--address", info.dashboard_url)


def submitted(*arguments: str, store: Store) -> tuple[subprocess.Popen[str], str]:
    """A client that follows the training it has submitted, and the job's id."""
    client = start("submit", "train", *arguments, *TRAINING, store=store.root)
    assert client.stderr is not None
    said = client.stderr.readline()
    assert said.startswith("submitted tiny-train-"), said
    return client, said.split()[1]


def checkpointed(store: Store, than: int = 0) -> int:
    """Wait for a checkpoint of a later step; its step."""

    def newest() -> int:
        found = [
            each.progress.step
            for folder in store.root.glob(f"runs/*/train-*/{CHECKPOINTS}")
            for each in complete_checkpoints(folder)
        ]
        return max(found, default=0)

    wait(lambda: newest() > than, limit_s=400)
    return newest()


def test_a_training_that_is_stopped_loses_no_step_and_its_client_ends_with_the_jobs_code(
    config: Path, store: Store, by_address: tuple[str, str]
) -> None:
    client, job_id = submitted("-c", str(config), *by_address, store=store)
    checkpointed(store)
    code, out, err = raylm("jobs", "status", job_id, *by_address, "-o", "json", store=store.root)
    assert code == 0, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("running", None)
    code, out, err = raylm("jobs", "stop", job_id, *by_address, "-o", "json", store=store.root)
    assert code == 0, err
    stopped = json.loads(out)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 143)
    # 47 s of grace, 60 for an upload, 30 to end.
    assert stopped["metadata"]["stop_wait_s"] == "137"
    out, err = client.communicate(timeout=60)
    assert client.returncode == 143, err
    assert f"job {job_id} stopped, exit code 143" in out
    (work,) = store.root.glob("runs/*/train-*")
    logged = [line["step"] for line in read_metrics(work / METRICS) if "loss" in line]
    assert complete_checkpoints(work / CHECKPOINTS)[0].progress.step == logged[-1] < 100_000


def test_a_training_that_fails_ends_its_client_with_the_code_of_its_error(
    config: Path, store: Store, by_address: tuple[str, str]
) -> None:
    (work,) = store.root.glob("runs/*/train-*")  # of the training that was stopped
    before = checkpointed(store)
    never = ("--set", "train.max_failures=0")
    client, job_id = submitted("-c", str(config), *by_address, *never, store=store)
    checkpointed(store, than=before)
    os.kill(read_signs(work)[0].pid, signal.SIGKILL)
    out, err = client.communicate(timeout=200)
    assert client.returncode == 1, err
    assert f"job {job_id} failed, exit code 1" in out
    assert "error[train-worker-lost]" in err
    code, out, _ = raylm("jobs", "status", job_id, *by_address, "-o", "json", store=store.root)
    document = json.loads(out)
    assert (code, document["state"], document["exit_code"]) == (0, "failed", 1)
    assert document["error"]["code"] == "train-worker-lost"
    # One that the cluster has no room for is an error of the environment.
    large = ("--set", "train.workers=64", "--set", "train.global_batch=128")
    code, out, err = raylm(
        "submit", "train", "-c", str(config), *by_address, *TRAINING, *large, store=store.root
    )
    assert code == 3, err
    assert "error[cluster-too-small]" in err
    assert "failed, exit code 3" in out


def test_the_cluster_waits_as_long_as_a_job_may_save(jobs: Jobs) -> None:
    jobs.submit(
        "waits", "echo wait $RAY_JOB_STOP_WAIT_TIME_S", runtime_env={}, metadata={}, save_s=59.5
    )
    wait(lambda: jobs.get("waits").has_ended)
    assert "wait 90" in jobs.log("waits").splitlines()
    assert jobs.get("waits").stop_wait_s == 90


def test_on_a_terminal_ctrl_c_asks_and_no_stops_the_job(jobs: Jobs, store: Store) -> None:
    pid = sleeper(jobs, "sleeper-two")
    main, side = pty.openpty()
    client = subprocess.Popen(
        [sys.executable, "-m", "raylm", "jobs", "logs", "-f", "sleeper-two"],
        env={**os.environ, "RAYLM_STORE": str(store.root)},
        stdin=side, stdout=side, stderr=side, start_new_session=True,
    )  # fmt: skip
    os.close(side)
    try:
        said = read_until(main, str(pid))
        client.send_signal(signal.SIGINT)
        said += read_until(main, "leave sleeper-two running?")
        os.write(main, b"n\n")
        said += read_until(main, "sleeper-two is stopped")
        assert client.wait(60) == 130, said
    finally:
        client.kill()
        client.wait()
        os.close(main)
    assert jobs.get("sleeper-two").state == "stopped"
    assert not psutil.pid_exists(pid)


def read_until(terminal: int, words: str) -> str:
    said, deadline = "", time.monotonic() + 120
    while words not in said:
        assert time.monotonic() < deadline, said
        said += os.read(terminal, 4096).decode()
    return said


def test_jobs_are_listed_and_an_unknown_one_gets_the_nearest(jobs: Jobs, store: Store) -> None:
    jobs.submit("echo-hello", "echo hello", runtime_env={}, metadata={})
    wait(lambda: jobs.get("echo-hello").has_ended)
    code, out, err = raylm("jobs", "ls", "-o", "json", store=store.root)
    assert code == 0, err
    (row,) = [row for row in json.loads(out) if row["id"] == "echo-hello"]
    assert (row["state"], row["exit_code"]) == ("succeeded", 0)
    code, out, _ = raylm("jobs", "logs", "echo-hello", store=store.root)
    # Before or after the line that says what is run: Ray writes both at once.
    assert "hello" in out.splitlines()
    code, _, err = raylm("jobs", "status", "echo-helo", store=store.root)
    assert code == 2
    assert "error[job-not-found]" in err
    assert "did you mean 'echo-hello'?" in err


def test_another_store_needs_the_address_and_the_token(
    info: ClusterInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = raylm("submit", "-c", "demo", store=tmp_path / "s")
    assert code == 3
    assert "error[cluster-not-up]" in err
    ask = ["jobs", "ls", "-o", "json", "--address", info.dashboard_url]
    for token in ({}, {"RAY_AUTH_TOKEN": "0" * 64}):
        with monkeypatch.context() as patch:
            for name, value in token.items():
                patch.setenv(name, value)
            code, out, err = raylm(*ask, store=tmp_path / "s")
        assert (code, out) == (3, "")
        assert "error[cluster-token-refused]" in err
        assert "RAY_AUTH_TOKEN_PATH" in err
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", info.env["RAY_AUTH_TOKEN_PATH"])
    code, out, err = raylm(*ask, store=tmp_path / "s")
    assert code == 0, err
    assert isinstance(json.loads(out), list)


def test_a_job_that_the_cluster_cannot_start_is_an_error_of_the_environment(jobs: Jobs) -> None:
    said: list[str] = []
    jobs.submit(
        "no-such-module", "true", metadata={},
        runtime_env={"py_modules": ["gcs://_ray_pkg_0000000000000000.zip"]},
    )  # fmt: skip
    job: Job = jobs.follow("no-such-module", said.append)
    assert (job.state, job.exit_code) == ("failed", 3)
    assert "runtime_env" in job.message
