"""Bundle: all that an installation needs, in one folder that goes where no network is.

    bundle.json         what it is of: the release, its images, models, charts
    raylm.yaml          the configuration, every value, models by their digests
    values.yaml         the values of the chart that come of it
    charts/             raylm and raylm-train as Helm packages
    kuberay/            definitions and operator
    kustomization.yaml  the same with the operator's image, for `kubectl apply -k`
    images/             archives of images
    models/             model artifacts
    SHA256SUMS          of all of these, as `sha256sum` writes and reads them

The hash of SHA256SUMS is the bundle's own: whoever has it by another way trusts no carrier.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import raylm
from raylm.artifact import Artifact, disk_errors, hash_tree
from raylm.config.engine import DraftModel
from raylm.config.run import RunConfig
from raylm.config.serve import VariantsConfig
from raylm.deploy.kubernetes.charts import chart_folder, kuberay_folder
from raylm.deploy.kubernetes.client import Client
from raylm.deploy.kubernetes.images import archive_names, full_name, needed
from raylm.deploy.kubernetes.release import render
from raylm.deploy.kubernetes.values import CHARTS, Chart, chart_values
from raylm.errors import ArtifactError, ConfigError
from raylm.progress import Report, Tick, silent
from raylm.store import Store

SUMS = "SHA256SUMS"
ABOUT = "bundle.json"
SCHEMA_VERSION = 1
OPERATOR = "quay.io/kuberay/operator:v1.6.1"
"""Of the release that the definitions are from."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was looked at."""

    path: Path
    digest: str
    """SHA-256 of its sums, hex."""
    release: str
    images: dict[str, tuple[str, ...]]
    """Full names, by the archive's path in the bundle."""
    models: tuple[str, ...]
    """Paths of the artifacts in the bundle."""
    charts: dict[Chart, str]
    """Paths of the packages in the bundle."""
    raylm: str
    """Version that made it."""
    schema_version: int = SCHEMA_VERSION

    def chart(self, chart: Chart) -> Path:
        """A chart's package."""
        return self.path / self.charts[chart]


def make(
    client: Client,
    config: RunConfig,
    release: str,
    store: Store,
    *,
    archives: Sequence[Path],
    there: Sequence[str] = (),
    to: Path,
    report: Report = silent,
) -> Bundle:
    """Put together what the served model of a configuration needs.

    `archives` are of images; `there` are names of images that the cluster has already. `to` is a
    new folder, or a new file `*.tar`.

    Raises:
        ConfigError: an image that the manifests name is in no archive, or `to` is there.
        ArtifactError: a model is not in the store, or was altered.
        HostError: Helm is missing, or the disk is full.
    """
    folder = to.with_suffix("") if to.suffix == ".tar" else to
    for path in {to, folder}:
        if path.exists():
            raise ConfigError(f"{path} is there already", code="bundle-exists")
    if isinstance(config.engine.speculation, DraftModel):
        raise ConfigError(
            "engine.speculation: a bundle has no draft models", code="bundle-draft-model"
        )
    models = [store.resolve(_ref(model), "model") for model in config.serve.models]
    config = pinned(config, models)
    values = chart_values(config)
    names = {path: archive_names(path) for path in archives}
    check_images(client, release, values, names, there)
    with disk_errors(folder):
        (folder / "images").mkdir(parents=True)
        try:
            bundle = _fill(client, folder, config, release, values, models, names, report)
            if to.suffix == ".tar":
                report(Tick("bundle", f"writing {to}"))
                with tarfile.open(to, "x") as archive:
                    archive.add(folder, folder.name)
                shutil.rmtree(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if to != folder:
                to.unlink(missing_ok=True)
            raise
    return bundle


def _ref(model: str | VariantsConfig) -> str:
    if isinstance(model, str):
        return model
    raise ConfigError(
        "serve.models: a release on Kubernetes has no variants; name each model by itself",
        code="bundle-variants",
    )


def pinned(config: RunConfig, models: Sequence[Artifact]) -> RunConfig:
    """The configuration with its models by digest, and no place of this machine. Pure."""
    refs = tuple(f"{model.manifest.name}-{model.digest[:12]}" for model in models)
    serve = config.serve.model_copy(update={"models": refs})
    return config.model_copy(update={"serve": serve, "store": None})


def check_images(
    client: Client,
    release: str,
    values: dict[str, Any],
    names: dict[Path, list[str]],
    there: Sequence[str],
) -> None:
    """See that every image is in an archive, or is said to be there.

    Raises:
        ConfigError: naming those that are not.
    """
    manifests = list(yaml.safe_load_all(render(client, "raylm", release, values)))
    found = {name for archive in names.values() for name in archive} | set(map(full_name, there))
    if missing := sorted((needed(manifests) | {OPERATOR}) - found):
        raise ConfigError(
            f"no archive has {', '.join(missing)}",
            code="image-missing",
            hint="--image FILE adds an archive (`docker save -o FILE NAME`); --there NAME says "
            "that the cluster has it",
        )


def _fill(
    client: Client,
    folder: Path,
    config: RunConfig,
    release: str,
    values: dict[str, Any],
    models: Sequence[Artifact],
    names: dict[Path, list[str]],
    report: Report,
) -> Bundle:
    images: dict[str, tuple[str, ...]] = {}
    for path, found in names.items():
        report(Tick("bundle", f"copying {path.name}"))
        place = f"images/{path.name}"
        if place in images:
            raise ConfigError(f"two archives are named {path.name}", code="image-archive")
        shutil.copyfile(path, folder / place)
        images[place] = tuple(found)
    for model in models:
        report(Tick("bundle", f"copying {model.ref}"))
        shutil.copytree(model.path, folder / "models" / model.path.name)
    shutil.copytree(kuberay_folder(), folder / "kuberay")
    charts: dict[Chart, str] = {}
    for chart in CHARTS:
        done = client.helm("package", str(chart_folder(chart)), "-d", str(folder / "charts"))
        charts[chart] = f"charts/{Path(done.strip().rpartition(' ')[2]).name}"
    image, _, tag = OPERATOR.rpartition(":")
    texts = {
        "raylm.yaml": config.model_dump(mode="json"),
        "values.yaml": values,
        "kustomization.yaml": {
            "resources": ["kuberay"],
            # The definitions name it without a version, which a kubelet pulls always.
            "images": [{"name": "kuberay/operator", "newName": image, "newTag": tag}],
        },
    }
    for name, content in texts.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")
    bundle = Bundle(
        path=folder,
        digest="",
        release=release,
        images=images,
        models=tuple(f"models/{model.path.name}" for model in models),
        charts=charts,
        raylm=raylm.__version__,
    )
    about = {key: value for key, value in asdict(bundle).items() if key not in ("path", "digest")}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    report(Tick("bundle", "hashing"))
    told = sums(folder)
    (folder / SUMS).write_text(told, encoding="utf-8")
    return replace(bundle, digest=_digest(told))


def sums(folder: Path) -> str:
    """Lines as `sha256sum` writes them, of every file but the sums themselves."""
    found = [entry for entry in hash_tree(folder) if entry.path != SUMS]
    return "".join(f"{entry.sha256}  {entry.path}\n" for entry in found)


def read(folder: Path, *, digest: str | None = None) -> Bundle:
    """Open a bundle: every file is hashed, and none may be there that is not listed.

    `digest` is what `make` said, where it came by another way.

    Raises:
        ConfigError: there is no bundle, or one of a newer raylm.
        ArtifactError: naming the files that differ, are missing, or are too many.
    """
    if not (folder / SUMS).is_file():
        archive = f"; unpack it first: tar xf {folder}" if folder.is_file() else ""
        raise ConfigError(f"{folder} is no bundle{archive}", code="bundle-missing")
    told = (folder / SUMS).read_text(encoding="utf-8")
    own = _digest(told)
    if digest is not None and own != digest.removeprefix("sha256:").lower():
        raise _altered(folder, f"{SUMS} has the hash {own}, and {digest} is expected")
    listed = {name: sha for sha, _, name in (line.partition("  ") for line in told.splitlines())}
    found = {entry.path: entry.sha256 for entry in hash_tree(folder) if entry.path != SUMS}
    bad = [
        *(f"{name} is missing" for name in listed.keys() - found.keys()),
        *(f"{name} is not listed in {SUMS}" for name in found.keys() - listed.keys()),
        *(
            f"{name} was altered"
            for name in listed
            if found.get(name, listed[name]) != listed[name]
        ),
    ]
    if bad:
        raise _altered(folder, "; ".join(sorted(bad)))
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["schema_version"] > SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} was made by raylm {about['raylm']}, which is newer", code="bundle-newer"
        )
    images = {path: tuple(names) for path, names in about["images"].items()}
    models = tuple(about["models"])
    return Bundle(**{**about, "images": images, "models": models}, path=folder, digest=own)


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()


def _altered(folder: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{folder}: {what}", code="bundle-altered", hint="bring it again from where it was made"
    )
