"""raylm deploy bundle|load: an installation without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, open_store, read_config
from raylm.cli.output import emit
from raylm.cli.progress import progress

if TYPE_CHECKING:
    from raylm.config.load import Loaded
    from raylm.deploy.kubernetes.bundle import Bundle

Digest = Annotated[
    str | None,
    typer.Option(
        "--digest",
        metavar="SHA256",
        help="The bundle's digest, as `raylm deploy bundle` printed it. [default: not compared]",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="FOLDER",
        help="Chart and configuration of a bundle (`raylm deploy bundle`), unpacked. "
        "[default: none]",
        show_default=False,
    ),
]


def bundle(
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="A new folder, or FILE.tar.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Archive of an image (OCI, or `docker save`); may be given again. [default: none]",
            show_default=False,
        ),
    ] = None,
    there: Annotated[
        list[str] | None,
        typer.Option(
            "--there",
            metavar="NAME",
            help="Image that the cluster has already; may be given again. [default: none]",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """All that the served model needs, for a cluster without a network: images, charts, KubeRay,
    models, and the hash of every file."""
    from raylm.cli.deploy import release_name
    from raylm.deploy.kubernetes import bundle as bundles
    from raylm.deploy.kubernetes.client import Client

    loaded = read_config(config, sets)
    with progress() as report:
        made = bundles.make(
            Client(),
            loaded.config,
            release_name(loaded.config, train=False),
            open_store(store or loaded.config.store),
            archives=image or (),
            there=there or (),
            to=to,
            report=report,
        )
    emit(_document(made, to), _text(made, to), output)


def load(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The unpacked bundle.")],
    into: Annotated[
        Literal["ctr", "k3s", "nerdctl", "docker", "kind", "minikube"] | None,
        typer.Option(
            "--into",
            help="Give the images to this node's containers by this program; on every node. "
            "[default: nowhere]",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="PLACE",
            help="Copy the models into this store: what the release's claim holds, or a URL. "
            "[default: nowhere]",
            show_default=False,
        ),
    ] = None,
    digest: Digest = None,
    output: Output = "text",
) -> None:
    """Hash a bundle's files, and put its images and models where the cluster finds them."""
    from raylm.deploy.kubernetes import bundle as bundles
    from raylm.deploy.kubernetes.images import take_in
    from raylm.progress import Tick

    with progress() as report:
        report(Tick("bundle", "hashing"))
        found = bundles.read(folder, digest=digest)
        for archive in found.images if into is not None else ():
            report(Tick("bundle", f"{into} takes {archive}"))
            take_in(folder / archive, str(into))
        for model in found.models if store is not None else ():
            report(Tick("bundle", f"copying {model}"))
            open_store(store).take(folder / model)
    emit(_document(found, folder), _text(found, folder), output)


def read_bundle(folder: Path, sets: list[str] | None) -> tuple[Bundle, Loaded]:
    """A bundle, every byte of it looked at, and its configuration with what is overridden."""
    from raylm.deploy.kubernetes import bundle as bundles

    found = bundles.read(folder)
    return found, read_config(str(folder / "raylm.yaml"), sets)


def _document(found: Bundle, path: Path) -> dict[str, object]:
    return {
        "path": str(path),
        "digest": found.digest,
        "release": found.release,
        "images": sorted(name for names in found.images.values() for name in names),
        "models": [Path(model).name for model in found.models],
        "charts": found.charts,
    }


def _text(found: Bundle, path: Path) -> str:
    images = sorted(name for names in found.images.values() for name in names)
    return "\n".join(
        [
            f"bundle    {path}",
            f"digest    {found.digest}",
            f"release   {found.release}",
            *(f"image     {name}" for name in images),
            *(f"model     {Path(model).name}" for model in found.models),
        ]
    )
