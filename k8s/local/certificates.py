"""One authority for a cluster's life, and a certificate for each who speaks in it.

Made by openssl with elliptic keys (P-256); nothing of it outlives the cluster.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from k8s.local.command import run
from k8s.local.plan import (
    API_SERVICE,
    API_URL,
    CONTROL,
    DOMAIN,
    WORKERS,
    Worker,
)

_DAYS = "365"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate names.

    Attributes:
        file: name of the files, without suffix.
        user: the common name, which is the user's name to the API server.
        group: the organization, which is the group.
        hosts: names and addresses that it serves at; none for a client only.
    """

    file: str
    user: str
    group: str = ""
    hosts: tuple[str, ...] = ()


ADMIN = Identity("admin", "raylm-admin", "system:masters")
API_SERVER = Identity(
    "apiserver",
    "kube-apiserver",
    hosts=(
        CONTROL.address,
        API_SERVICE,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{DOMAIN}",
    ),
)
KUBELET_CLIENT = Identity("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
CONTROLLER_MANAGER = Identity("controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("scheduler", "system:kube-scheduler")
PROXY = Identity("proxy", "system:kube-proxy")
NETWORK_POLICY = Identity("network-policy", "raylm:network-policy")


def kubelet(worker: Worker) -> Identity:
    """A node: client of the API server, and server of its logs and of exec."""
    return Identity(
        worker.name, f"system:node:{worker.name}", "system:nodes", (worker.name, worker.address)
    )


def everyone() -> list[Identity]:
    """All that have a certificate."""
    return [
        ADMIN, API_SERVER, KUBELET_CLIENT, CONTROLLER_MANAGER, SCHEDULER, PROXY, NETWORK_POLICY,
        *map(kubelet, WORKERS),
    ]  # fmt: skip


def make_all(folder: Path) -> None:
    """Make the authority, every certificate, and the key that signs service accounts' tokens."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_key(folder / "ca.key")
    run(
        "openssl", "req", "-x509", "-new", "-key", folder / "ca.key", "-out", folder / "ca.crt",
        "-days", _DAYS, "-subj", "/CN=raylm-local",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
    )  # fmt: skip
    _make_key(folder / "accounts.key")
    run("openssl", "ec", "-in", folder / "accounts.key", "-pubout", "-out", folder / "accounts.pub")
    for identity in everyone():
        issue(folder, identity)


def issue(folder: Path, identity: Identity) -> None:
    """Make one certificate, signed by the authority in the folder."""
    key, request = folder / f"{identity.file}.key", folder / f"{identity.file}.csr"
    _make_key(key)
    subject = f"/O={identity.group}" * bool(identity.group) + f"/CN={identity.user}"
    run("openssl", "req", "-new", "-key", key, "-subj", subject, "-out", request)
    extensions = folder / f"{identity.file}.ext"
    extensions.write_text(extensions_text(identity))
    run(
        "openssl", "x509", "-req", "-in", request, "-days", _DAYS,
        "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-extfile", extensions, "-out", folder / f"{identity.file}.crt",
    )  # fmt: skip
    request.unlink()
    extensions.unlink()


def extensions_text(identity: Identity) -> str:
    """What a certificate may be used for, in openssl's format."""
    usage = "clientAuth,serverAuth" if identity.hosts else "clientAuth"
    lines = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={usage}",
    ]
    if identity.hosts:
        names = (f"{'IP' if host[0].isdigit() else 'DNS'}:{host}" for host in identity.hosts)
        lines.append(f"subjectAltName={','.join(names)}")
    return "\n".join(lines) + "\n"


def kubeconfig(folder: Path, identity: Identity) -> str:
    """The file a client of the API server needs, keys included, as JSON (which is YAML)."""

    def data(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    cluster = {"server": API_URL, "certificate-authority-data": data("ca.crt")}
    user = {
        "client-certificate-data": data(f"{identity.file}.crt"),
        "client-key-data": data(f"{identity.file}.key"),
    }
    name = "raylm-local"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": identity.user, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": identity.user}}],
            "current-context": name,
        },
        indent=1,
    )


def _make_key(path: Path) -> None:
    path.touch(mode=0o600)
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
