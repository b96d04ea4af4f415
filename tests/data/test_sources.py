from pathlib import Path

import pytest

from raylm.config.data import DataConfig
from raylm.data.sources import list_files
from raylm.errors import DataError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def names(root: Path, *paths: str, **config: object) -> list[str]:
    return [f.name for f in list_files(DataConfig(paths=paths, **config), root)]  # type: ignore[arg-type]


def test_files_come_in_the_order_of_paths_and_sorted_within(tmp_path: Path) -> None:
    make(tmp_path, "b/2.txt", "b/10.txt", "b/sub/1.txt", "a.txt")
    assert names(tmp_path, "b", "a.txt") == ["b/10.txt", "b/2.txt", "b/sub/1.txt", "a.txt"]
    assert names(tmp_path, "a.txt", "b/")[0] == "a.txt"


def test_names_are_as_given_and_never_absolute(tmp_path: Path) -> None:
    make(tmp_path, "deep/texts/1.txt")
    assert names(tmp_path, "deep/texts") == ["deep/texts/1.txt"]
    assert names(tmp_path, "./deep//texts/") == ["deep/texts/1.txt"]
    assert names(tmp_path, str(tmp_path / "deep/texts")) == ["texts/1.txt"]
    assert names(tmp_path, str(tmp_path / "deep/texts/1.txt")) == ["texts/1.txt"]
    assert names(tmp_path / "deep", ".") == ["texts/1.txt"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, "x/texts/1.txt", "y/texts/1.txt")
    found = names(tmp_path, str(tmp_path / "x/texts"), str(tmp_path / "y/texts"))
    assert found == ["texts/1.txt", "texts~2/1.txt"]


def test_a_file_reached_twice_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "a/1.txt", "a/2.txt")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names(tmp_path, "a/2.txt", "a", "link") == ["a/2.txt", "a/1.txt"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "a/1.txt")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert names(tmp_path, "a") == ["a/1.txt"]


def test_hidden_and_excluded_files_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a/1.txt", "a/.git/x", "a/.hidden", "a/build/y.txt", "a/z.bin")
    assert names(tmp_path, "a", exclude=("build", "*.bin")) == ["a/1.txt"]
    assert names(tmp_path, "a", pattern="**/*.bin") == ["a/z.bin"]


def test_globs_take_fitting_files(tmp_path: Path) -> None:
    make(tmp_path, "a/1.txt", "a/2.md", "a/b/3.txt")
    assert names(tmp_path, "a/*.txt") == ["a/1.txt"]
    assert names(tmp_path, "a/**/*.txt") == ["a/1.txt", "a/b/3.txt"]
    assert names(tmp_path, "a/*.txt", "a/*.md") == ["a/1.txt", "a/2.md"]


def test_the_kind_of_a_file_is_in_its_name(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.ndjson.gz", "c.txt.gz", "d.json")
    files = list_files(DataConfig(paths=(".",)), tmp_path)
    assert [(f.jsonl, f.gzipped) for f in files] == [
        (True, False), (True, True), (False, True), (False, False)
    ]  # fmt: skip


def test_the_standard_library_comes_without_tests_and_packages() -> None:
    found = names(Path.cwd(), "python:stdlib")
    assert "python:stdlib/os.py" in found
    assert "python:stdlib/json/decoder.py" in found
    assert found == sorted(found)
    assert not [n for n in found if "/test/" in n or "site-packages" in n or "_sysconfigdata" in n]


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("txets", "data-missing-path", "did you mean 'texts'?"),
        ("no/where", "data-missing-path", "its folder"),
        ("texts/*.md", "data-no-files", "searched for in"),
        ("python:stdlb", "data-missing-path", "python:stdlib"),
        ("empty", "data-no-files", "hidden"),
    ],
)
def test_what_is_not_there_is_named_with_a_remedy(
    tmp_path: Path, path: str, code: str, words: str
) -> None:
    make(tmp_path, "texts/1.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=path.replace("*", r"\*")) as caught:
        names(tmp_path, path)
    assert caught.value.code == code
    assert words in (caught.value.hint or "")


def test_no_paths_offer_the_standard_library(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        names(tmp_path)
    assert caught.value.code == "data-no-paths"
    assert "python:stdlib" in (caught.value.hint or "")


def test_records_come_from_jsonl_files_alone(tmp_path: Path) -> None:
    make(tmp_path, "c/a.jsonl", "c/b.ndjson.gz", "c/notes.txt")
    with pytest.raises(DataError) as caught:
        names(tmp_path, "c", format="chat")
    assert caught.value.code == "data-not-records"
    assert caught.value.message.startswith("c/notes.txt: data.format=chat reads records")
    assert names(tmp_path, "c", format="chat", exclude=("*.txt",)) == ["c/a.jsonl", "c/b.ndjson.gz"]
    assert len(names(tmp_path, "c")) == 3
