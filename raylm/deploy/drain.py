"""`python -m raylm.deploy.drain ADDRESS SECONDS`: finish running answers, then end the endpoint.

Its exit code is 0 if all were finished.
"""

from __future__ import annotations

import sys


def drain(address: str, drain_s: float) -> bool:
    """Whether every running answer was finished in time."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        from raylm.serve.app import undeploy

        return undeploy(drain_s=drain_s)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(0 if drain(sys.argv[1], float(sys.argv[2])) else 1)
