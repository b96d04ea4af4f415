import shutil
from pathlib import Path

import pytest

from k8s.local import binaries
from k8s.local.binaries import KUBERAY, KUBERNETES


def test_versions_are_read_from_the_modules() -> None:
    assert binaries.version(KUBERNETES) == "v1.36.3"
    assert binaries.version(KUBERNETES, "k8s.io/client-go") == "v0.36.3"
    assert binaries.version(KUBERAY) == "v1.6.1"


def test_staging_modules_are_those_of_the_release() -> None:
    text = (Path(binaries.__file__).parent / "go/kubernetes/go.mod").read_text()
    replaced = [line.split("=>")[1].split() for line in text.splitlines() if "=> k8s.io/" in line]
    assert len(replaced) == 33
    assert {version for _, version in replaced} == {"v0.36.3"}


def test_programs_tell_their_version_to_helm() -> None:
    flags = binaries.linker_flags(KUBERNETES)
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=36" in flags
    assert "-X" not in binaries.linker_flags(KUBERAY)


def test_programs_have_the_names_they_are_kept_by() -> None:
    assert {"kubelet", "kubectl", "coredns", "networkpolicy"} <= set(KUBERNETES.programs)
    assert KUBERAY.programs == ["kuberay-operator"]


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_a_build_is_found_again_until_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Path(binaries.__file__).parent / "go"
    shutil.copytree(sources, tmp_path / "go")
    monkeypatch.setattr(binaries, "_SOURCES", tmp_path / "go")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = []
    for change in ("", "", "// changed\n"):
        binaries.folder.cache_clear()
        with (tmp_path / "go/kubernetes/coredns/main.go").open("a") as file:
            file.write(change)
        places.append(binaries.folder(KUBERNETES))
    binaries.folder.cache_clear()
    assert places[0] == places[1] != places[2]
    assert places[0].parent == tmp_path / "cache/raylm/k8s/bin"
    assert places[0].name.startswith("kubernetes-v1.36.3-")


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_go_builds_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "go" / "tiny"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module tiny\n\ngo 1.21\n\nrequire x.y/z v1.2.3\n")
    (module / "main.go").write_text(
        "package main\n\nvar gitVersion string\n\nfunc main() { print(gitVersion) }\n"
    )
    (module / "go.mod").write_text("module tiny\n\ngo 1.21\n")
    monkeypatch.setattr(binaries, "_SOURCES", tmp_path / "go")
    monkeypatch.setattr(binaries, "version", lambda build: "v1.2.3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build = binaries.Build("tiny", ("tiny",), "x.y/z", ("main",), (("tiny", "small"),))
    folder = binaries.ensure(build)
    made = (folder / "small").stat().st_mtime_ns
    assert binaries.ensure(build) == folder
    assert (folder / "small").stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
