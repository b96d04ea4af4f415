"""local_nodes: a cluster of several nodes for as long as a block lasts.

    with local_nodes(2, num_cpus=1) as nodes:
        nodes.run(PYTHON_CODE)          # a driver on the head's node
        nodes.kill_node(1)              # as if the machine lost power

All is removed at the end; what a killed owner left is removed by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.local import network
from cluster.local.nodes import STATE, Nodes
from raylm.deploy import owned
from raylm.deploy.environment import temp_dir_for
from raylm.errors import ConfigError


@contextmanager
def local_nodes(
    num: int, num_cpus: int = 1, *, isolate: bool | None = None, head_cpus: int | None = None
) -> Iterator[Nodes]:
    """A cluster of `num` nodes with `num_cpus` each, ended with the block.

    Args:
        isolate: a network namespace for each; None if this process may.
        head_cpus: CPUs of the first node where they are others, perhaps none.

    Raises:
        HostError: a node does not start; nothing of it is left then.
    """
    sweep()
    nodes = Nodes.create(
        num_cpus=num_cpus,
        head_cpus=head_cpus,
        isolate=network.may_isolate() if isolate is None else isolate,
    )
    try:
        for _ in range(num):
            nodes.add_node()
        yield nodes
    finally:
        nodes.remove()


def all_nodes() -> list[Nodes]:
    """Every cluster of this kind of this user, whoever made it."""
    found = []
    for path in Path("/tmp").glob(f"raylm-*/{STATE}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if path.stat().st_uid == os.getuid():
                found.append(Nodes.read(path.parent))
    return found


def find_nodes() -> Nodes:
    """The cluster that was made to stay.

    Raises:
        ConfigError: there is none.
    """
    for nodes in all_nodes():
        if not nodes.is_owned and nodes.nodes:
            return nodes
    raise ConfigError(
        "no nodes are up",
        code="nodes-none",
        hint="`python -m cluster.local up --nodes 3` starts some",
    )


def sweep() -> None:
    """Remove what killed owners left: processes, namespaces, links, folders."""
    known = all_nodes()
    for nodes in known:
        if nodes.is_left_over:
            nodes.remove()
    # Its folder in /tmp may have been removed by others.
    for cluster_id in network.cluster_ids() - {nodes.id for nodes in known}:
        if not owned.marked(owned.MARK, cluster_id) and not temp_dir_for(cluster_id).exists():
            network.remove(cluster_id)
    network.sweep_tried()
