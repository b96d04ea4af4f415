"""What deploy checks before it asks the cluster for anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from raylm.config.engine import EngineConfig
from raylm.config.serve import BatchesConfig, CacheConfig, ServeConfig
from raylm.errors import ConfigError, HostError
from raylm.serve.app import Endpoint, free_port
from raylm.serve.build import shared
from raylm.serve.catalog import ServedModel, check_names
from raylm.serve.gateway import capacity
from raylm.serve.room import check_room, num_threads

MODEL = ServedModel("m", Path("/m"))


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(HostError, match=str(port)) as caught:
            free_port("127.0.0.1", port)
    assert caught.value.code == "port-taken"
    assert free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize(
    ("engine", "serve", "cpus", "threads"),
    [
        ({"num_threads": 3}, {}, [2.0], 3),
        ({}, {"replicas": 2}, [2.0], 1),
        ({}, {"replicas": 1}, [2.0], 2),
        ({}, {"replicas": 4}, [2.0], 1),
        ({}, {"replicas": 2}, [4.0, 4.0], 4),
        ({}, {"replicas": 1}, [4.0, 4.0], 4),
        ({}, {"replicas": 1, "cpus_per_replica": 2.5}, [16.0], 2),
    ],
)
def test_threads_are_bound_to_the_share_of_the_cores(engine, serve, cpus, threads):
    assert num_threads([MODEL], ServeConfig(**serve), EngineConfig(**engine), cpus) == threads


def test_too_small_a_cluster_is_an_error_with_both_figures():
    check_room([MODEL], ServeConfig(replicas=2), 1.25)
    with pytest.raises(HostError, match=r"needs 1.25 CPUs .* has 1 in all"):
        check_room([MODEL], ServeConfig(replicas=2), 1.0)


def test_two_models_of_one_name_are_refused():
    twin = ServedModel("other", Path("/o"), aliases=("m",))
    with pytest.raises(ConfigError, match="/o and /m are both named 'm'"):
        check_names([MODEL, twin])
    with pytest.raises(ConfigError, match="no model"):
        check_names([])


def test_hosts_that_serve_cannot_bind_are_refused():
    assert ServeConfig(host="localhost").host == "127.0.0.1"
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        ServeConfig(host="10.0.0.5")


def test_url_is_reachable_from_here():
    assert Endpoint("0.0.0.0", 80, ("m",), True).url == "http://127.0.0.1:80/v1"


@pytest.mark.parametrize(
    ("has_keys", "changes", "expected"),
    [
        (False, {}, []),
        (True, {}, ["ledger"]),
        (False, {"cache": CacheConfig()}, ["results"]),
        (False, {"batches": BatchesConfig()}, ["ledger", "batches"]),
    ],
)
def test_what_gateways_share_runs_where_it_is_needed(has_keys, changes, expected):
    assert shared(ServeConfig(**changes), has_keys=has_keys) == expected


def test_gateways_share_the_capacity():
    config = ServeConfig(replicas=2, gateways=3, max_ongoing_requests=100, max_queued_requests=10)
    assert capacity(config, 1) == 67 + 10
