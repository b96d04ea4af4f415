"""A store in a bucket, against a real S3 server on loopback."""

import os
import shutil
from pathlib import Path

import pytest

from raylm.artifact import Artifact, Kind
from raylm.bucket import Bucket
from raylm.errors import ArtifactError, ConfigError, HostError
from raylm.store import Store, stage_key

KEY = stage_key("train", 1, {"steps": 2}, {"data": "d"})


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """From here on, this is another machine: it shares nothing but the bucket."""
    (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(tmp_path / name))


def make(
    store: Store, text: str = "x", kind: Kind = "model", parents: tuple[Artifact, ...] = ()
) -> Artifact:
    with store.draft(kind, "m") as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "file").write_text(text)
        (draft.path / "empty").touch()
        return draft.commit(parents=parents, metrics={"loss": 1.5})


def keys(s3: object) -> list[str]:
    found = s3.list_objects_v2(Bucket="models").get("Contents", [])  # type: ignore[attr-defined]
    # Arrow keeps markers (keys that end in a slash) where folders would be.
    return sorted(entry["Key"] for entry in found if not entry["Key"].endswith("/"))


def test_what_one_machine_makes_another_finds(
    url: str, s3: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(url)
    assert store.find(KEY) is None
    made = make(store)
    assert keys(s3) == []
    store.remember(KEY, made)
    name = f"team/{made.ref}"
    assert keys(s3) == [
        f"team/index/{KEY}.json",
        *(f"{name}/{file}" for file in ("deep/file", "empty", "manifest.json")),
    ]
    machine(monkeypatch, tmp_path, "b")
    other = Store(url)
    assert other.root != store.root
    assert [a.ref for a in other.list()] == [made.ref]
    assert not (other.root / made.ref).exists()
    found = other.find(KEY)
    assert found is not None
    assert found.digest == made.digest
    assert (found.path / "deep" / "file").read_text() == "x"
    assert found.path.is_relative_to(other.root)
    assert other.resolve("m").path == found.path


def test_the_manifest_is_put_last(
    url: str, s3: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(url)
    made = make(store)

    def broken(*_: object) -> None:
        raise OSError("the network went away")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_put", broken)
        with pytest.raises(HostError) as caught:
            store.remember(KEY, made)
    assert caught.value.code == "store-unreachable"
    assert store.list() == []
    # Nothing was lost: the next one who asks for it uploads it.
    again = Store(url).find(KEY)
    assert again is not None
    machine(monkeypatch, tmp_path, "b")
    found = Store(url).find(KEY)
    assert found is not None
    assert found.digest == made.digest


def test_an_altered_object_is_found_and_not_used(
    url: str, s3: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(url)
    made = make(store)
    store.remember(KEY, made)
    s3.put_object(Bucket="models", Key=f"team/{made.ref}/deep/file", Body=b"y")  # type: ignore[attr-defined]
    machine(monkeypatch, tmp_path, "b")
    other = Store(url)
    with pytest.raises(ArtifactError) as caught:
        other.find(KEY)
    assert caught.value.code == "artifact-altered"
    assert not (other.root / made.ref).exists()
    assert list((other.root / "drafts").iterdir()) == []


def test_removed_is_removed_for_all_and_made_again_when_needed(
    url: str, s3: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(url)
    made = make(store)
    store.remember(KEY, made)
    machine(monkeypatch, tmp_path, "b")
    other = Store(url)
    child = make(other, "child", parents=(other.resolve("m"),))
    other.remember(stage_key("x", 1, {}, {}), child)
    with pytest.raises(ArtifactError, match=child.ref):
        store.remove(made)
    other.remove(child)
    other.remove(other.resolve(made.ref))
    assert [key for key in keys(s3) if "index" not in key] == []
    assert other.find(KEY) is None
    # The first machine still has its copy: a run there puts it back.
    assert store.find(KEY) is not None
    assert [a.ref for a in other.list()] == [made.ref]


def test_a_lost_cache_is_downloaded_again(url: str) -> None:
    store = Store(url)
    made = make(store)
    store.remember(KEY, made)
    shutil.rmtree(store.root)
    again = Store(url).resolve("m")
    assert (again.path / "deep" / "file").read_text() == "x"


def test_bad_places_are_told_with_a_remedy(url: str, s3: object) -> None:
    with pytest.raises(ConfigError) as missing:
        Store(url.replace("models", "nowhere")).list()
    assert missing.value.code == "store-missing"
    with pytest.raises(ConfigError) as unknown:
        Store("ftp://models/team").list()
    assert unknown.value.code == "store-unknown"
    with pytest.raises(HostError) as unreachable:
        Store("s3://models/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1%3A1").list()
    assert unreachable.value.code == "store-unreachable"
    assert "AWS_ACCESS_KEY_ID" in str(unreachable.value.hint)


def test_keys_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(url.replace("s3://", "s3://me:SECRET@")).list()
    assert caught.value.code == "store-key-in-url"
    assert "me:SECRET" not in f"{caught.value.message}{caught.value.hint}"


def test_what_needs_no_artifact_needs_no_network() -> None:
    store = Store("s3://no-such-bucket/x")
    assert store.root.is_dir()
    assert os.listdir(store.root / "runs") == []
