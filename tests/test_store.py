import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylm.artifact import Artifact, Kind
from raylm.errors import ArtifactError, HostError
from raylm.store import Store, stage_key


def make(
    store: Store, name: str = "m", text: str = "x", kind: Kind = "model", *parents: Artifact
) -> Artifact:
    with store.draft(kind, name) as draft:
        (draft.path / "file").write_text(text)
        return draft.commit(parents=parents, metrics={"loss": 1.5}, config={"a": 1})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_commit_has_a_manifest_with_everything(store: Store) -> None:
    parent = make(store, "d", "data", "dataset")
    artifact = make(store, "m", "x", "model", parent)
    manifest = store.open(artifact.path).manifest
    assert artifact.ref == f"model/m-{artifact.digest[:12]}"
    assert manifest.parents == (parent.digest,)
    assert manifest.metrics == {"loss": 1.5}
    assert manifest.versions["raylm"] == "0.1.0"
    assert [f.path for f in manifest.files] == ["file"]
    assert len(manifest.config_hash) == 64


def test_equal_content_has_one_address(store: Store) -> None:
    assert make(store).path == make(store).path
    assert len(store.list()) == 1


def test_a_draft_that_is_not_committed_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.draft("model", "m") as draft:
        (draft.path / "half").write_text("x")
        raise RuntimeError
    assert list((store.root / "drafts").iterdir()) == []
    assert store.list() == []


def test_what_a_killed_process_left_is_swept(store: Store) -> None:
    script = (
        "import sys, time; from raylm.store import Store\n"
        "with Store(sys.argv[1]).draft('model', 'm') as d:\n"
        "    (d.path / 'x').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    Store(store.root)
    assert len(list((store.root / "drafts").iterdir())) == 1  # its owner lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    Store(store.root)
    assert list((store.root / "drafts").iterdir()) == []


def test_a_truncated_file_is_noticed_on_opening(store: Store) -> None:
    artifact = make(store, text="long text")
    (artifact.path / "file").write_text("long")
    with pytest.raises(ArtifactError, match="has 4 bytes, its manifest says 9"):
        store.open(artifact.path)


def test_an_altered_file_of_the_same_size_is_noticed_on_opening(store: Store) -> None:
    artifact = make(store, text="aaaa")
    (artifact.path / "file").write_text("bbbb")
    with pytest.raises(ArtifactError, match="was altered"):
        store.open(artifact.path)


def test_a_missing_file_is_named(store: Store) -> None:
    artifact = make(store)
    (artifact.path / "file").unlink()
    with pytest.raises(ArtifactError, match="file is missing"):
        store.open(artifact.path)


def test_a_folder_without_a_manifest_does_not_count(store: Store) -> None:
    artifact = make(store)
    (artifact.path / "manifest.json").unlink()
    assert store.list() == []
    assert make(store).path == artifact.path  # made again in its place
    assert len(store.list()) == 1


def test_names_prefixes_and_digests_resolve(store: Store) -> None:
    old, new, other = make(store, "m", "1"), make(store, "m", "2"), make(store, "n", "3")
    os.utime(new.path)
    assert store.resolve(other.ref).digest == other.digest
    assert store.resolve("n").digest == other.digest
    assert store.resolve(old.digest).digest == old.digest
    assert store.resolve(old.digest[:10]).digest == old.digest
    assert store.resolve(new.ref.partition("/")[2], "model").digest == new.digest
    with pytest.raises(ArtifactError) as caught:
        store.resolve("nn")
    assert caught.value.hint == "did you mean 'n'?"
    with pytest.raises(ArtifactError) as caught:
        store.resolve("m-")
    assert caught.value.code == "artifact-ambiguous"


def test_what_others_descend_from_is_not_removed(store: Store) -> None:
    parent = make(store, "d", "data", "dataset")
    child = make(store, "m", "x", "model", parent)
    with pytest.raises(ArtifactError, match=child.ref):
        store.remove(parent)
    store.remove(child)
    store.remove(parent)
    assert store.list() == []


def test_a_stage_is_found_by_its_key_until_the_result_is_gone(store: Store) -> None:
    artifact = make(store)
    key = stage_key("train", 1, {"steps": 2}, {"data": "d"})
    assert store.find(key) is None
    store.remember(key, artifact)
    found = store.find(key)
    assert found is not None
    assert found.digest == artifact.digest
    store.remove(artifact)
    assert store.find(key) is None


def test_the_stage_key_depends_on_each_part() -> None:
    keys = {
        stage_key("train", 1, {"a": 1}, {"d": "x"}),
        stage_key("train", 2, {"a": 1}, {"d": "x"}),
        stage_key("train", 1, {"a": 2}, {"d": "x"}),
        stage_key("train", 1, {"a": 1}, {"d": "y"}),
        stage_key("eval", 1, {"a": 1}, {"d": "x"}),
    }
    assert len(keys) == 5


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(HostError) as caught:
            Store(place)
        assert caught.value.code == "disk-forbidden"


def _hold(root: str, name: str, seconds: float, order: "multiprocessing.Queue[str]") -> None:
    with Store(root).lock("stage-x"):
        order.put(f"{name} in")
        time.sleep(seconds)
        order.put(f"{name} out")


def test_a_lock_lets_one_process_in_at_a_time(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    order: multiprocessing.Queue[str] = context.Queue()
    processes = [
        context.Process(target=_hold, args=(str(store.root), name, 0.3, order)) for name in "ab"
    ]
    for process in processes:
        process.start()
    seen = [order.get(timeout=30) for _ in range(4)]
    for process in processes:
        process.join(30)
    assert seen in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def test_two_commits_of_the_same_content_at_once_leave_one(store: Store) -> None:
    script = (
        "import sys; from raylm.store import Store\n"
        "with Store(sys.argv[1]).draft('model', 'm') as d:\n"
        "    (d.path / 'x').write_text('x'); print(d.commit().ref)\n"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    refs = {process.communicate(timeout=60)[0] for process in both}
    assert len(refs) == 1
    assert len(store.list()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        store = Store(small / "store")
        kept = make(store)
        with pytest.raises(HostError) as caught, store.draft("model", "big") as draft:
            (draft.path / "file").write_bytes(b"x" * 2**21)
        assert caught.value.code == "disk-full"
        assert list((store.root / "drafts").iterdir()) == []
        assert store.open(kept.path).digest == kept.digest
    finally:
        subprocess.run(["umount", str(small)], check=True)
