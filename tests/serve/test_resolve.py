"""From names in the config to folders: artifacts, folders, variants, merged adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raylm.artifact import verify
from raylm.config.serve import VariantsConfig
from raylm.errors import ArtifactError, ConfigError, ModelError
from raylm.serve import resolve as module
from raylm.serve.resolve import resolve
from raylm.store import Store
from tests.engine.adapters import write_adapter
from tests.serve.conftest import write_llama

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, name: str, **shape: int) -> str:
    """A Llama as an artifact; its `name-digest12`."""
    with store.draft("model", name) as draft:
        write_llama(draft.path, **shape)
        return draft.commit().ref.partition("/")[2]


def variants(**by_name: object) -> VariantsConfig:
    return VariantsConfig.model_validate({"name": "notes", "variants": by_name})


def test_variants_are_served_side_by_side_under_one_name(store, tmp_path):
    whole, small = put(store, "notes"), put(store, "notes-small", layers=1)
    folder = write_llama(tmp_path / "elsewhere" / "llama", layers=1, hidden=32)
    entry = variants(f32="notes", small=small, other=str(folder))
    entry = entry.model_copy(update={"default": "small"})
    put(store, "plain", layers=1, hidden=32)
    plain, *found = resolve(["plain", entry], store, tmp_path)
    assert plain.variant is None and plain.names[0] == "plain"
    assert [m.names for m in found] == [
        ("notes@f32", whole),
        ("notes", "notes@small", small),
        ("notes@other",),
    ]
    assert [m.model for m in found] == ["notes"] * 3
    assert len({m.digest for m in found}) == 3
    assert found[2].path == folder.resolve()


def test_an_adapter_is_merged_once_and_is_an_artifact_of_its_own(store, tmp_path, monkeypatch):
    put(store, "notes")
    adapter = write_adapter(tmp_path / "acme", {Q: (64, 64)}, base_model_name_or_path="x/Notes")
    entry = variants(f32="notes", acme={"model": "notes", "adapter": "acme"})
    base, first = resolve([entry], store, tmp_path)
    assert first.name == "notes@acme" and first.digest != base.digest
    artifact = store.resolve(f"notes-acme-{first.digest[:12]}", "model")
    verify(artifact)
    assert artifact.manifest.parents == (base.digest,)
    assert artifact.manifest.config["rank"] == 4
    assert set(artifact.manifest.config["merged"]) == {
        "base", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="is needed by"):
        store.remove(store.resolve("notes", "model"))

    def never(*args: object, **options: object) -> None:
        raise AssertionError("it was made already")

    with monkeypatch.context() as patched:
        patched.setattr(module, "run_apart", never)
        assert resolve([entry], store, tmp_path)[1] == first
    write_adapter(adapter, {Q: (64, 64)}, seed=2)
    assert resolve([entry], store, tmp_path)[1].digest != first.digest


def test_an_adapter_goes_into_a_plain_folder_too(store, tmp_path):
    write_llama(tmp_path / "llama")
    write_adapter(tmp_path / "acme", {Q: (64, 64)}, base_model_name_or_path="./out/llama/")
    entry = variants(acme={"model": "llama", "adapter": "acme"})
    (found,) = resolve([entry], store, tmp_path)
    assert found.names[:2] == ("notes", "notes@acme")
    assert store.resolve("notes-acme").digest == found.digest


@pytest.mark.parametrize(
    ("changes", "shape", "code"),
    [
        ({"base_model_name_or_path": "acme/other"}, (64, 64), "adapter-of-another-model"),
        ({"use_dora": True}, (64, 64), "unsupported-adapter"),
        ({}, (64, 32), "adapter-misfit"),  # found in the process that merges
    ],
)
def test_what_cannot_be_merged_leaves_nothing_behind(store, tmp_path, changes, shape, code):
    put(store, "notes")
    write_adapter(tmp_path / "acme", {Q: shape}, **changes)
    with pytest.raises(ModelError) as caught:
        resolve([variants(acme={"model": "notes", "adapter": "acme"})], store, tmp_path)
    assert caught.value.code == code
    assert [a.manifest.name for a in store.list("model")] == ["notes"]
    assert list((store.root / "drafts").iterdir()) == []


def test_an_adapter_of_the_same_model_under_another_name_is_taken_at_its_word(store, tmp_path):
    put(store, "notes")
    write_adapter(tmp_path / "acme", {Q: (64, 64)}, base_model_name_or_path="acme/other")
    config = {"model": "notes", "adapter": "acme", "trained_on": "acme/other"}
    (found,) = resolve([variants(acme=config)], store, tmp_path)
    assert found.variant == "acme"


def test_a_model_that_is_not_there_is_named(store, tmp_path):
    put(store, "notes")
    with pytest.raises(ArtifactError, match="'note-x'"):
        resolve([variants(a="note-x")], store, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no adapter_config"):
        resolve([variants(a={"model": "notes", "adapter": "empty"})], store, tmp_path)


def test_two_models_of_one_name_are_refused_before_anything_starts(store, tmp_path):
    put(store, "notes")
    with pytest.raises(ConfigError, match="both named 'notes'"):
        resolve(["notes", variants(f32="notes")], store, tmp_path)
    small = put(store, "small", layers=1)  # the same weights twice
    with pytest.raises(ConfigError, match=f"both named '{small}'"):
        resolve(["small", variants(a="small")], store, tmp_path)


def test_a_merged_model_says_in_its_files_what_its_base_said(store, tmp_path):
    put(store, "notes")
    write_adapter(tmp_path / "acme", {Q: (64, 64)})
    entry = variants(acme={"model": "notes", "adapter": "acme"})
    (found,) = resolve([entry], store, tmp_path)
    base = store.resolve("notes", "model")
    files = {f.path: f.sha256 for f in base.manifest.files}
    ours = json.loads((found.path / "manifest.json").read_text())["files"]
    same = {f["path"] for f in ours if files.get(f["path"]) == f["sha256"]}
    assert same == files.keys() - {"model.safetensors"}
