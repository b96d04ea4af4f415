"""Several Ray nodes on one machine, for tests in which nodes are lost."""

from cluster.local.lifetime import local_nodes
from cluster.local.nodes import Node, Nodes

__all__ = ["Node", "Nodes", "local_nodes"]
