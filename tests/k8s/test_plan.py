from ipaddress import IPv4Address
from itertools import combinations

from k8s.local import plan
from k8s.local.plan import CONTROL, MACHINES, PODS, SERVICES, WORKERS


def test_no_two_networks_overlap_and_each_address_is_in_its_own() -> None:
    for one, other in combinations((MACHINES, PODS, SERVICES), 2):
        assert not one.overlaps(other)
    addresses = [machine.address for machine in plan.ALL] + [plan.HOST_ADDRESS]
    assert len(set(addresses)) == len(addresses)
    assert all(IPv4Address(address) in MACHINES for address in addresses)
    assert IPv4Address(plan.API_SERVICE) == SERVICES[1]
    assert IPv4Address(plan.DNS_SERVICE) in SERVICES


def test_each_node_has_a_part_of_the_pods_network() -> None:
    first, second = (worker.pods for worker in WORKERS)
    assert not first.overlaps(second)
    assert first.subnet_of(PODS) and second.subnet_of(PODS)


def test_every_machine_reaches_every_pod() -> None:
    first, second = WORKERS
    both = [(str(first.pods), first.address), (str(second.pods), second.address)]
    assert plan.routes(CONTROL) == both
    assert plan.routes(first) == [both[1], ("default", CONTROL.address)]
    assert plan.routes(second) == [both[0], ("default", CONTROL.address)]


def test_this_machine_reaches_pods_and_services_and_its_default_route_stays() -> None:
    routes = dict(plan.routes(None))
    assert routes[str(SERVICES)] == WORKERS[0].address
    assert {str(worker.pods) for worker in WORKERS} <= set(routes)
    assert "default" not in routes


def test_names_fit_the_kernel() -> None:
    # Names of devices have 15 characters at most.
    assert len(plan.DEVICE) <= 15
    assert all(len(worker.name) <= 15 for worker in WORKERS)
