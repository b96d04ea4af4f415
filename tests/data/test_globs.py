import pytest

from raylm.data.globs import compile_glob, matches


@pytest.mark.parametrize(
    ("glob", "path", "fits"),
    [
        ("**/*", "a.txt", True),
        ("**/*", "a/b/c.txt", True),
        ("*", "a/b.txt", False),
        ("*.txt", "a.txt", True),
        ("*.txt", "a/b.txt", False),
        ("**/*.txt", "b.txt", True),
        ("**/*.txt", "a/b.md", False),
        ("a/**", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a?.py", "ab.py", True),
        ("a?.py", "a/.py", False),
        ("[ab].py", "b.py", True),
        ("[!ab].py", "b.py", False),
        ("a+(b).txt", "a+(b).txt", True),
    ],
)
def test_a_glob_fits_whole_relative_paths(glob: str, path: str, fits: bool) -> None:
    assert bool(compile_glob(glob).fullmatch(path)) is fits


def test_an_excluded_folder_excludes_what_lies_in_it() -> None:
    assert matches("build/x/y.py", ["build"])
    assert matches("build/x/y.py", ["build/"])
    assert matches("a/build/y.py", ["**/build"])
    assert not matches("a/build/y.py", ["build"])
    assert not matches("builds/y.py", ["build"])
