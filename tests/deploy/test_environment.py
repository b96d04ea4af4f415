from pathlib import Path

import pytest

from raylm.deploy.environment import (
    base_env,
    cluster_env,
    keep_only_logs,
    ray_dir,
    temp_dir_for,
)
from raylm.deploy.head import last_cause, start_error
from raylm.deploy.ports import Ports

PORTS = Ports.at(20_000)


def test_sockets_of_haproxy_and_ray_fit_their_limits() -> None:
    temp_dir = temp_dir_for("0123abcd")
    env = cluster_env("0123abcd", PORTS, temp_dir=temp_dir, token=Path("/t"))
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        path = Path(env[name])
        per_node = path.parent / ("f" * 56) / path.name
        assert len(str(per_node)) <= 97
    session = "session_2026-11-24_02-29-02_494987_4194304/sockets/plasma_store"
    assert len(str(ray_dir(temp_dir) / session)) <= 107


def test_nothing_reports_home_and_tokens_are_required() -> None:
    env = cluster_env("0123abcd", PORTS, temp_dir=Path("/tmp/x"), token=Path("/s/token"))
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN_PATH"] == "/s/token"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["RAYLM_CLUSTER_ID"] == "0123abcd"
    assert "token" not in {k.lower() for k in env}


def test_addresses_of_other_clusters_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(base_env())


def test_of_an_ended_cluster_only_logs_stay(tmp_path: Path) -> None:
    session = ray_dir(tmp_path) / "session_1"
    for name in ("logs", "sockets", "ray_spilled_objects"):
        (session / name).mkdir(parents=True)
    (session / "logs" / "raylet.err").write_text("why")
    (tmp_path / "ha").mkdir()
    keep_only_logs(tmp_path)
    assert [p.name for p in session.iterdir()] == ["logs"]
    assert (session / "logs" / "raylet.err").read_text() == "why"
    assert not (tmp_path / "ha").exists()


def test_the_cause_of_a_failed_start_is_its_exception(tmp_path: Path) -> None:
    log = tmp_path / "head.log"
    log.write_text(
        "INFO -- Failed to get node info b'RPC error: x'\nTraceback (most recent call last):\n"
        "ValueError: the port is taken\nbye\n"
    )
    assert last_cause(log) == "ValueError: the port is taken"
    assert start_error(last_cause(log), "h").code == "cluster-start-failed"
    slow = start_error("Exception: The current node timed out during startup. This", "h")
    assert slow.code == "cluster-start-slow"
    log.write_text(
        "ERROR services.py:1432 -- Failed to start the dashboard \nException: \nThe last\n"
    )
    assert start_error(last_cause(log), "h").code == "cluster-start-slow"
    log.write_text("Failed to start the dashboard , return code 1\nValueError: no such port\n")
    assert last_cause(log) == "ValueError: no such port"
    assert "busy" in slow.message
