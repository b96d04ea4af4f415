"""A bundle: whole when it is made, and refused by name when a byte of it is not as it was."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from raylm.cli import deploy, main
from raylm.config.load import load_config
from raylm.deploy.kubernetes import bundle as bundles
from raylm.errors import ArtifactError, ConfigError
from raylm.store import Store
from tests.deploy.kubernetes.archives import docker_archive, oci_archive
from tests.helm.charts import ROOT, find_helm

CONFIG = """\
name: demo
serve:
  models: [tiny]
deploy:
  namespace: prod
  serving:
    store: {claim: models}
    api_keys: {existing_secret: raylm-keys}
    image: {repository: registry.local/raylm, tag: "1"}
"""
RAYLM, REDIS = "registry.local/raylm:1", "docker.io/library/redis:7.4"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a configuration, archives, and the bundle `made`."""
    find_helm()
    place = tmp_path_factory.mktemp("bundle")
    with Store(place / "store").draft("model", "tiny") as draft:
        (draft.path / "config.json").write_text("{}")
        (draft.path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        draft.commit()
    (place / "raylm.yaml").write_text(CONFIG)
    oci_archive(place / "raylm.tar", RAYLM)
    docker_archive(place / "redis.tar", "redis:7.4")
    assert (
        main([*command(place), "--image", str(place / "redis.tar"), "--to", f"{place}/made"]) == 0
    )
    return place


def command(place: Path) -> list[str]:
    """Of a bundle, without Redis's archive and the target."""
    words = ["deploy", "bundle", "-c", f"{place}/raylm.yaml", "--store", f"{place}/store"]
    return [*words, "--image", f"{place}/raylm.tar", "--there", bundles.OPERATOR]


@pytest.fixture
def made(place: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be spoilt."""
    return Path(shutil.copytree(place / "made", tmp_path / "made"))


def test_it_has_all_that_an_installation_needs(place: Path) -> None:
    found = bundles.read(place / "made")
    assert found.release == "demo"
    assert found.images == {"images/raylm.tar": (RAYLM,), "images/redis.tar": (REDIS,)}
    (model,) = Store(place / "store").list("model")
    assert found.models == (f"models/tiny-{model.digest[:12]}",)
    assert set(found.charts) == {"raylm", "raylm-train"}
    for package in found.charts.values():
        with tarfile.open(found.path / package) as archive:
            assert any(n.endswith("/templates/_pod.tpl") for n in archive.getnames())
    config = yaml.safe_load((found.path / "raylm.yaml").read_text())
    assert config["serve"]["models"] == [f"tiny-{model.digest[:12]}"]
    assert yaml.safe_load((found.path / "values.yaml").read_text())["models"] == [
        {"ref": f"tiny-{model.digest[:12]}"}
    ]
    assert (found.path / "kuberay/crd/ray.io_rayservices.yaml").is_file()
    there = yaml.safe_load((ROOT / "k8s/overlays/cluster/kustomization.yaml").read_text())
    assert yaml.safe_load((found.path / "kustomization.yaml").read_text()) == {
        "resources": ["kuberay"],
        "images": there["images"],
    }


def test_its_sums_are_those_of_sha256sum(place: Path) -> None:
    words = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(words, cwd=place / "made", check=True)


@pytest.mark.parametrize(
    "name",
    ["images/raylm.tar", "models/*/model.safetensors", "models/*/manifest.json", "values.yaml",
     "charts/raylm-0*.tgz", "kuberay/crd/ray.io_rayjobs.yaml", "bundle.json"],
)  # fmt: skip
def test_a_changed_byte_is_refused_by_name(made: Path, name: str) -> None:
    (path,) = made.glob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=re.escape(path.relative_to(made).as_posix())) as told:
        bundles.read(made)
    assert told.value.code == "bundle-altered"
    assert told.value.message.count("was altered") == 1


def test_so_is_a_file_too_few_or_too_many(made: Path) -> None:
    (made / "images/redis.tar").rename(made / "images/other.tar")
    with pytest.raises(ArtifactError) as told:
        bundles.read(made)
    assert "images/redis.tar is missing" in told.value.message
    assert "images/other.tar is not listed" in told.value.message


def test_a_link_is_refused(made: Path) -> None:
    (made / "values.yaml").unlink()
    (made / "values.yaml").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match=r"values\.yaml is not a plain file"):
        bundles.read(made)


def test_sums_made_anew_do_not_have_the_digest_that_was_told(made: Path) -> None:
    digest = bundles.read(made).digest
    (made / "values.yaml").write_text("models: []\n")
    (made / "SHA256SUMS").write_text(bundles.sums(made))
    bundles.read(made)
    with pytest.raises(ArtifactError, match=f"and {digest} is expected"):
        bundles.read(made, digest=digest)


def test_an_image_that_is_in_no_archive_is_named_and_nothing_is_left(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(place), "--to", f"{place}/other"]) == 2
    error = capsys.readouterr().err
    assert f"error[image-missing]: no archive has {REDIS}\n" in error
    assert not (place / "other").exists()


def test_a_bundle_in_one_file_is_unpacked_before_it_is_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "demo.tar"
    words = [*command(place), "--image", str(place / "redis.tar"), "--to", str(to), "-o", "json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == [to]
    with pytest.raises(ConfigError, match="tar xf"):
        bundles.read(to)
    subprocess.run(["tar", "xf", str(to), "-C", str(tmp_path)], check=True)
    assert bundles.read(tmp_path / "demo", digest=document["digest"]).digest == document["digest"]


def test_load_copies_its_models_into_a_store(place: Path, tmp_path: Path) -> None:
    words = ["deploy", "load", str(place / "made"), "--store", str(tmp_path / "claim")]
    assert main(words) == 0
    (model,) = Store(place / "store").list("model")
    taken = Store(tmp_path / "claim").resolve("tiny", "model")
    assert taken.manifest == model.manifest
    assert (taken.path / "model.safetensors").read_bytes() == bytes(range(256)) * 40
    assert main(words) == 0


def test_install_from_it_needs_no_other_configuration(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no cluster here; what is asked for before one is reached is refused before."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    words = ["deploy", "install", "--bundle", str(made)]
    assert main([*words, "-c", str(made / "raylm.yaml")]) == 2
    assert "error[config-twice]" in capsys.readouterr().err
    assert main([*words, "--set", "deploy.namespace=other"]) == 3
    assert "error[kubernetes-unreachable]" in capsys.readouterr().err
    (made / "raylm.yaml").write_text("name: other\n")
    assert main(words) == 1
    assert "raylm.yaml was altered" in capsys.readouterr().err


def test_every_command_of_the_page_is_one() -> None:
    page = (ROOT / "docs/air-gapped.md").read_text().replace("\\\n", "")
    lines = [line for line in page.splitlines() if line.startswith("raylm deploy ")]
    assert [line.split()[2] for line in lines] == [
        "bundle",
        "load",
        "load",
        "load",
        *["install"] * 2,
    ]
    group = typer.main.get_command(deploy.app)
    assert isinstance(group, TyperGroup)
    sets = []
    for line in lines:
        name, *words = shlex.split(line)[2:]
        params = group.commands[name].make_context(name, words).params
        sets += params.get("sets") or []
    assert len(sets) == 2
    load_config(None, sets)
