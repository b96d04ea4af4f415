"""Client: helm and kubectl, as one asks them; what they say becomes errors of one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.errors import HostError, RaylmError

CALL_S = 60.0
_INSTALL = {
    "helm": "install Helm 3.14 or later, or `make helm` in a checkout of raylm",
    "kubectl": "install the kubectl of your cluster's version",
}
_FAIL = re.compile(r"^execution error at \([^)]*\): (.+)")
_UNREACHABLE = (
    "connection refused", "was refused", "unable to connect", "no such host", "i/o timeout",
    "deadline exceeded", "cluster unreachable",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Client:
    """A cluster, by its context in the kubeconfig, and a namespace; None takes the current ones."""

    context: str | None = None
    namespace: str | None = None

    def kubectl(self, *arguments: str, timeout_s: float = CALL_S) -> str:
        """What a kubectl command writes.

        Raises:
            HostError: kubectl is missing, or the cluster cannot be reached or refuses.
        """
        place = self._place("--context", "--namespace")
        return call([tool("kubectl"), *place, *arguments], timeout_s=timeout_s)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """A resource, or None where there is none.

        Raises:
            HostError: as `kubectl`.
        """
        text = self.kubectl("get", *arguments, "--ignore-not-found", "-o", "json")
        return dict(json.loads(text)) if text.strip() else None

    def may(self, verb: str, resource: str) -> bool:
        """Whether the one who asks has a right in the namespace."""
        try:
            return self.kubectl("auth", "can-i", verb, resource).strip() == "yes"
        except HostError as error:
            # It says no by its exit code.
            if error.code == "kubernetes-unreachable":
                raise
            return False

    def helm(self, *arguments: str, stdin: str | None = None, timeout_s: float = CALL_S) -> str:
        """What a Helm command writes; as `kubectl`."""
        place = self._place("--kube-context", "--namespace")
        return call([tool("helm"), *arguments, *place], stdin=stdin, timeout_s=timeout_s)

    def _place(self, context: str, namespace: str) -> list[str]:
        words = [] if self.context is None else [context, self.context]
        return words if self.namespace is None else [*words, namespace, self.namespace]


def tool(name: str) -> str:
    """A program on PATH, or the one that `make` has built into the cache.

    Raises:
        HostError: it is in neither place.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm/bin"
    found = shutil.which(name) or next(map(str, sorted(cache.glob(f"{name}-*"))), None)
    if found is None:
        raise HostError(f"{name} is not installed", code="tool-missing", hint=_INSTALL[name])
    return found


def call(command: Sequence[str], *, stdin: str | None = None, timeout_s: float) -> str:
    """Standard output of a command.

    Raises:
        HostError: it failed, with its own first line of reason, or took too long.
    """
    name = Path(command[0]).name.partition("-")[0]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise HostError(
            f"{name} did not end within {timeout_s:.0f} s", code="kubernetes-unreachable"
        ) from None
    if done.returncode:
        raise failure(name, done.stderr)
    return done.stdout


def failure(name: str, stderr: str) -> RaylmError:
    """The error that a tool's last words stand for. Pure."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("level=", "W0", "W1", "E0", "E1"))]
    lines = [line for line in lines if not line.startswith("Use --debug")] or [f"{name} failed"]
    text = " ".join(lines).removeprefix("Error: ").removeprefix("error: ")
    # Helm puts the template's place before what the chart itself says.
    own = _FAIL.search(text)
    text = own[1] if own else text
    if any(word in text.lower() for word in _UNREACHABLE):
        return HostError(
            f"the cluster cannot be reached: {text}",
            code="kubernetes-unreachable",
            hint="`kubectl config get-contexts` lists the clusters; --context chooses one",
        )
    if "forbidden" in text.lower():
        return HostError(
            text, code="kubernetes-forbidden", hint="ask who runs the cluster for a role"
        )
    code = "chart-refused" if own or "meet the specifications" in text else f"{name}-failed"
    return HostError(text, code=code)
