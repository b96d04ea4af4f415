import json
import os
import stat
from pathlib import Path

import pytest

from raylm.artifact import (
    FileEntry,
    content_digest,
    disk_errors,
    hash_tree,
    read_manifest,
    write_atomic,
)
from raylm.errors import ArtifactError, HostError


def test_the_digest_is_of_content_and_kind_alone() -> None:
    one = FileEntry("a", 1, "aa")
    two = FileEntry("b", 2, "bb")
    assert content_digest("model", (one, two)) == content_digest("model", (two, one))
    assert content_digest("model", (one,)) != content_digest("dataset", (one,))
    assert content_digest("model", (one,)) != content_digest("model", (two,))


def test_hash_tree_lists_files_sorted_and_leaves_the_manifest_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    (tmp_path / "manifest.json").write_text("{}")
    entries = hash_tree(tmp_path)
    assert [e.path for e in entries] == ["a", "sub/b"]
    assert entries[0].sha256 == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_a_link_is_no_part_of_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="not a plain file"):
        hash_tree(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', "null"])
def test_what_is_no_manifest_is_called_altered(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == "artifact-altered"


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == "artifact-newer"


def test_write_atomic_replaces_whole_files_and_sets_the_mode(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomic(file, "old")
    write_atomic(file, "new", mode=0o600)
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(("number", "code"), [(28, "disk-full"), (13, "disk-forbidden")])
def test_disk_errors_name_the_place_and_the_remedy(number: int, code: str) -> None:
    with pytest.raises(HostError) as caught, disk_errors(Path("/there")):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code
    assert "/there" in caught.value.message
    assert caught.value.hint
