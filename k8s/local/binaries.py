"""Programs from Go modules, built once for each version and kept in the cache.

`go/*/go.mod` and `go.sum` say what is built, with the checksum of every module. A build is found
again by those files, the flags and Go's version; the versions of Kubernetes and KubeRay are read
from them and nowhere else.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from k8s.local.command import run
from k8s.local.layout import cache
from raylm.errors import HostError

_SOURCES = Path(__file__).parent / "go"
_BUILD_S = 3600.0
_GOMOD = re.compile(r"^(?:require)?\s*(\S+) (v\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Build:
    """Programs of one Go module.

    Attributes:
        module: folder below `go/`.
        packages: what is built, each a `main` package.
        version_of: the module whose version names the build.
        stamps: packages with a `gitVersion` that is set to it; Helm refuses an unknown one.
        renames: name of a built program -> the name it is kept by.
    """

    module: str
    packages: tuple[str, ...]
    version_of: str
    stamps: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()

    @property
    def programs(self) -> list[str]:
        """Names of the programs."""
        new = dict(self.renames)
        names = [package.rpartition("/")[2] for package in self.packages]
        return [new.get(name, name) for name in names]


KUBERNETES = Build(
    "kubernetes",
    (
        *(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-proxy",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            )
        ),
        "raylm.local/kubernetes/coredns",
        "raylm.local/kubernetes/networkpolicy",
    ),
    "k8s.io/kubernetes",
    ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"),
)
KUBERAY = Build(
    "kuberay",
    ("github.com/ray-project/kuberay/ray-operator",),
    "github.com/ray-project/kuberay/ray-operator",
    renames=(("ray-operator", "kuberay-operator"),),
)
ALL = (KUBERNETES, KUBERAY)


def version(build: Build, module: str = "") -> str:
    """The version that go.mod names, as `v1.2.3`."""
    text = (_SOURCES / build.module / "go.mod").read_text()
    versions: dict[str, str] = dict(_GOMOD.findall(text))
    return versions[module or build.version_of]


def linker_flags(build: Build) -> str:
    """Flags that leave symbols out and set the version."""
    number = version(build)
    major, minor, _ = number.removeprefix("v").split(".", 2)
    values = {"gitVersion": number, "gitMajor": major, "gitMinor": minor}
    stamps = [
        f"-X {package}.{name}={value}" for package in build.stamps for name, value in values.items()
    ]
    return " ".join(["-s -w", *stamps])


@functools.cache
def folder(build: Build) -> Path:
    """Where the programs of this version are, or will be."""
    digest = hashlib.sha256()
    for path in sorted((_SOURCES / build.module).rglob("*.*")):
        digest.update(path.relative_to(_SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    words = (*build.packages, linker_flags(build), run("go", "env", "GOVERSION", "GOARCH"))
    digest.update("\0".join(words).encode())
    return cache() / "bin" / f"{build.module}-{version(build)}-{digest.hexdigest()[:12]}"


def ensure(build: Build) -> Path:
    """Build what is not built yet; returns the folder of the programs.

    GOFLAGS of the environment are kept: `-p=1` leaves a core to others.

    Raises:
        HostError: the build failed, with Go's last lines.
    """
    target = folder(build)
    if all((target / name).exists() for name in build.programs):
        return target
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    flags = f"{os.environ.get('GOFLAGS', '')} -mod=readonly -trimpath -buildvcs=false".strip()
    run(
        "go", "build", "-ldflags", linker_flags(build), "-o", f"{fresh}/", *build.packages,
        cwd=_SOURCES / build.module,
        env={"GOFLAGS": flags, "CGO_ENABLED": "0"},
        timeout_s=_BUILD_S,
    )  # fmt: skip
    for old, new in build.renames:
        (fresh / old).rename(fresh / new)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def module_folder(build: Build, module: str) -> Path:
    """Where the source of a module of the build lies; it is fetched if need be."""
    path = run("go", "list", "-m", "-f", "{{.Dir}}", module, cwd=_SOURCES / build.module)
    if not path.strip():
        run("go", "mod", "download", module, cwd=_SOURCES / build.module, timeout_s=600)
        path = run("go", "list", "-m", "-f", "{{.Dir}}", module, cwd=_SOURCES / build.module)
    if not path.strip():
        raise HostError(f"Go does not find the module {module}", code="k8s-module")
    return Path(path.strip())
