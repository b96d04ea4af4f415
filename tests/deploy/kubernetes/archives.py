"""Archives of a small image, as buildah and `docker save` write them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def oci_archive(path: Path, name: str | None) -> Path:
    """An OCI archive of an image with one file."""
    layer = _layer()
    config = _config(layer)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob("application/vnd.oci.image.config.v1+json", config),
            "layers": [_blob(_LAYER_TYPE, layer)],
        }
    ).encode()
    entry = _blob("application/vnd.oci.image.manifest.v1+json", manifest)
    if name is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files = {f"blobs/sha256/{_sha(data)}": data for data in (layer, config, manifest)}
    return _write(
        path, {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index} | files
    )


def docker_archive(path: Path, *names: str) -> Path:
    """What `docker save` writes."""
    layer = _layer()
    config = _config(layer)
    entry = {"Config": "config.json", "RepoTags": list(names), "Layers": ["layer.tar"]}
    manifest = json.dumps([entry]).encode()
    return _write(path, {"manifest.json": manifest, "config.json": config, "layer.tar": layer})


def _layer() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as layer:
        info = tarfile.TarInfo("hello")
        info.size = 5
        layer.addfile(info, io.BytesIO(b"hello"))
    return held.getvalue()


def _config(layer: bytes) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{_sha(layer)}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    return json.dumps(config).encode()


def _blob(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{_sha(data)}", "size": len(data)}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
