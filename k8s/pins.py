"""`python -m k8s.pins`: fetch KubeRay's manifests anew, and write their checksums.

They are copies out of the Go module that the operator is built from, so that `kubectl apply -k`
needs no network; the checksums tell a change by hand.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from k8s.local import binaries
from k8s.local.binaries import KUBERAY

FOLDER = Path(__file__).parent / "kuberay"
SUMS = FOLDER / "SHA256SUMS"
_PLACES = {"crd": "config/crd/bases", "rbac": "config/rbac", "manager": "config/manager"}


def checksums() -> str:
    """Lines as `sha256sum` writes them, of the copies that there are."""
    paths = sorted(path for place in _PLACES for path in (FOLDER / place).glob("*.yaml"))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER)}\n"
        for path in paths
    ]
    return "".join(lines)


def fetch() -> None:
    """Copy again what is there already; new definitions are added by hand, with a resource."""
    source = binaries.module_folder(KUBERAY, KUBERAY.version_of)
    for place, where in _PLACES.items():
        for path in (FOLDER / place).glob("*.yaml"):
            shutil.copyfile(source / where / path.name, path)
    SUMS.write_text(checksums())


if __name__ == "__main__":
    fetch()
    print(f"KubeRay {binaries.version(KUBERAY)}: {SUMS}", file=sys.stderr)
