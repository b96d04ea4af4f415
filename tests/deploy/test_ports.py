import socket

import pytest

from raylm.deploy.ports import BLOCK, Ports, are_free, choose_ports, is_listening
from raylm.errors import HostError


def flat(ports: Ports) -> list[int]:
    found: list[int] = []
    for value in ports.to_dict().values():
        found += range(value[0], value[1] + 1) if isinstance(value, tuple) else [value]
    return found


def test_every_port_of_a_cluster_is_its_own_and_in_its_block() -> None:
    found = flat(Ports.at(20_000))
    assert len(found) == len(set(found)) == 13 + 80 + 40 + 160
    assert min(found) == 20_000
    assert max(found) == 20_000 + BLOCK - 1


def test_a_record_survives_json() -> None:
    ports = Ports.at(21_000, dashboard=8265)
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in ports.to_dict().items()}
    assert Ports.from_dict(lists) == ports
    assert ports.dashboard == 8265


def test_chosen_ports_are_free_and_below_the_ephemeral_range() -> None:
    found = flat(choose_ports())
    assert are_free(found)
    assert max(found) < 32_768


def test_a_dashboard_port_in_use_is_refused_with_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert is_listening(port)
        assert not are_free([port])
        with pytest.raises(HostError, match=f"{port} is in use .cluster.dashboard_port"):
            choose_ports(port)
