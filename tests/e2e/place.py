"""Place: the Kubernetes that releases are tried on, with their images, volumes and secret.

By default it is the cluster of `make cluster-up`, made for the tests and removed after them; one
that is up already stays. With `RAYLM_E2E_CONTEXT` it is that context's cluster. That one pulls the
images `RAYLM_E2E_IMAGE` and `RAYLM_E2E_REDIS_IMAGE`, and has volumes for several nodes in the
storage class `RAYLM_E2E_STORAGE_CLASS`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.deploy.kubernetes.client import Client, tool
from raylm.errors import RaylmError

KEY = "e2e-key-0123456789abcdef0123456789"
SECRET = "raylm-keys"
CLIENT = "client"
"""A pod that has the key and nothing to do."""
NAMESPACE = "raylm"
_USER = 10001
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """A name that nodes know, in the two parts that the charts take."""

    repository: str
    tag: str

    @classmethod
    def named(cls, name: str) -> Image:
        repository, _, tag = name.rpartition(":")
        return cls(repository, tag)

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster, through the namespace of the tests; `volumes` is a folder that all nodes see."""

    client: Client
    image: Image
    redis: Image
    volumes: Path | None
    storage_class: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether its nodes are this machine's, and can be hurt."""
        return self.volumes is not None

    def kubectl(self, *words: str, timeout_s: float = 60.0) -> str:
        return self.client.kubectl(*words, timeout_s=timeout_s)

    def get(self, *words: str) -> Any:
        return self.client.get(*words)

    def items(self, kind: str, selector: str) -> list[Object]:
        found = self.get(kind, "-l", selector)
        return list(found["items"]) if found else []

    def apply(self, *objects: Object) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self._kubectl_with(text.encode(), "apply", "--server-side", "-f", "-")

    def run(self, pod: str, *words: str, timeout_s: float = 120.0) -> str:
        """Standard output of a command in a pod."""
        return self.kubectl("exec", pod, "--", *words, timeout_s=timeout_s)

    def python(self, pod: str, source: str, *words: str, timeout_s: float = 120.0) -> str:
        """Standard output of a program in a pod."""
        return self.run(pod, "python", "-c", source, *words, timeout_s=timeout_s)

    def copy_in(self, pod: str, source: Path, target: str) -> None:
        """A folder's content into a folder of a pod."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source, arcname=".")
        words = ("exec", "-i", pod, "--", "tar", "-x", "--no-same-owner", "-C", target)
        self._kubectl_with(packed.getvalue(), *words)

    def claim(self, name: str, content: Path | None = None) -> None:
        """Make a volume that all pods may write to, with a folder's content in it."""
        spec: Object = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": self.storage_class or "",
        }
        if self.volumes is not None:
            self._local_volume(name, self.volumes / name)
            spec["volumeName"] = name
        self.apply({"kind": "PersistentVolumeClaim", "spec": spec, **named(name)})
        if content is not None:
            filler = f"fill-{name}"
            self.apply(idle_pod(filler, self.image, claim=name))
            self.wait_ready(filler)
            self.copy_in(filler, content, "/volume")
            self.kubectl("delete", "pod", filler, "--wait=true")

    def _local_volume(self, name: str, folder: Path) -> None:
        folder.mkdir()
        os.chown(folder, _USER, _USER)
        self.apply(
            {
                "kind": "PersistentVolume",
                **named(name),
                "spec": {
                    "capacity": {"storage": "5Gi"},
                    "accessModes": ["ReadWriteMany"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": str(folder), "type": "Directory"},
                    "claimRef": {"namespace": NAMESPACE, "name": name},
                },
            }
        )

    def wait_ready(self, pod: str, timeout_s: float = 120.0) -> None:
        self.kubectl(
            "wait", f"pod/{pod}", "--for=condition=Ready", f"--timeout={timeout_s:.0f}s",
            timeout_s=timeout_s + 10,
        )  # fmt: skip

    def _kubectl_with(self, data: bytes, *words: str) -> None:
        place = [f"--namespace={self.client.namespace}"]
        place += [f"--context={self.client.context}"] if self.client.context else []
        command = [tool("kubectl"), *place, *words]
        done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()


def named(name: str, **labels: str) -> Object:
    """What begins every object."""
    return {"apiVersion": "v1", "metadata": {"name": name, "labels": labels}}


def idle_pod(
    name: str, image: Image, *, claim: str | None = None, node: str | None = None
) -> Object:
    """A pod of raylm's image that waits for what it is told; it may do no more than others."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "key", "secret": {"secretName": SECRET, "optional": True}},
    ]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "key", "mountPath": "/etc/raylm/key"}]
    if claim is not None:
        volumes.append({"name": "volume", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "volume", "mountPath": "/volume"})
    container = {
        "name": "main",
        "image": image.name,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "86400"],
        "securityContext": security,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": mounts,
    }
    return {
        "kind": "Pod",
        **named(name),
        "spec": {
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }


def secret() -> Object:
    """API keys, as the chart takes them."""
    entries = {"keys.json": f"{KEY}\n", "client-key": KEY}
    return {"kind": "Secret", **named(SECRET), "stringData": entries}


@contextmanager
def place() -> Iterator[Place]:
    """The cluster, with the secret and the client's pod; what is made is removed."""
    context = os.environ.get("RAYLM_E2E_CONTEXT")
    with _foreign(context) if context else _local() as found:
        # On the node that is not hurt: what is asked of a pod goes through its kubelet.
        found.apply(
            secret(), idle_pod(CLIENT, found.image, node="node-1" if found.is_local else None)
        )
        found.wait_ready(CLIENT)
        yield found


@contextmanager
def _foreign(context: str) -> Iterator[Place]:
    image, redis = (os.environ[f"RAYLM_E2E_{name}IMAGE"] for name in ("", "REDIS_"))
    client = Client(context, NAMESPACE)
    storage_class = os.environ.get("RAYLM_E2E_STORAGE_CLASS")
    found = Place(client, Image.named(image), Image.named(redis), None, storage_class)
    found.kubectl("create", "namespace", NAMESPACE)
    try:
        yield found
    finally:
        found.kubectl("delete", "namespace", NAMESPACE, timeout_s=600)


@contextmanager
def _local() -> Iterator[Place]:
    from k8s.local import importing, release_images
    from k8s.local.layout import KUBECONFIG
    from k8s.local.up import is_up

    was_up = is_up()
    with stage("images"):
        images = [release_images.raylm("serve"), release_images.redis()]
    try:
        with stage("cluster"):
            local("up")
        with stage("images to the nodes"):
            importing.import_archives([image.archive for image in images])
        with tempfile.TemporaryDirectory(prefix="raylm-e2e-") as folder:
            os.chmod(folder, 0o755)
            os.environ["KUBECONFIG"] = str(KUBECONFIG)
            names = [Image.named(image.name) for image in images]
            found = Place(Client(None, NAMESPACE), names[0], names[1], Path(folder))
            yield found
            if was_up:
                _clean(found)
    finally:
        os.environ.pop("KUBECONFIG", None)
        if not was_up:
            local("down")


def _clean(found: Place) -> None:
    found.kubectl("delete", "pods,persistentvolumeclaims,secrets", "--all", timeout_s=120)
    found.kubectl("delete", "persistentvolumes", "--all", timeout_s=120)


def local(command: str) -> None:
    """`make cluster-up` or `make cluster-down`."""
    words = [sys.executable, "-m", "k8s.local", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=2400, check=False)
    say(done.stderr)
    assert done.returncode == 0, done.stderr


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say how long something took."""
    start_s = time.monotonic()
    try:
        yield
    finally:
        say(f"  {name:<52} {time.monotonic() - start_s:7.1f} s")


def say(text: str) -> None:
    """Print for people."""
    print(text.rstrip(), file=sys.stderr, flush=True)


def until(
    what: str, is_so: Callable[[], object], timeout_s: float, *, poll_s: float = 0.5
) -> float:
    """Wait until something holds; the seconds it took. An answer that fails is none yet."""
    start_s = time.monotonic()
    while True:
        try:
            if is_so():
                return time.monotonic() - start_s
            why = ""
        except RaylmError as error:
            why = f": {error.message}"
        waited_s = time.monotonic() - start_s
        assert waited_s < timeout_s, f"{what}: not within {timeout_s:.0f} s{why}"
        time.sleep(poll_s)
