"""`ray start` of a further node on loopback, run as a script: `python join.py start --address ...`.

Ray listens on loopback alone where it is told that there is one machine, and then refuses a
second node (with a message about other systems). Only the command's own checks are changed: the
node's processes are told what the head's are.
"""

from __future__ import annotations

from ray._private import ray_constants, services
from ray.scripts.scripts import main

if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = lambda address=None: "127.0.0.1"
    main()
