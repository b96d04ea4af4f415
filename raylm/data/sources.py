"""Which files make the corpus, in an order and under names that no machine changes."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raylm.config.data import DataConfig
from raylm.data.globs import compile_glob, matches
from raylm.errors import DataError, nearest

STDLIB = "python:stdlib"
# Tests are left out because distributions differ in shipping them; _sysconfigdata is
# written by the build and holds its paths.
_STDLIB_EXCLUDE = (
    "site-packages", "dist-packages", "test", "**/test", "**/tests", "**/idle_test",
    "_sysconfigdata*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file; `name` is what lineage calls it: the path as given, never absolute."""

    name: str
    path: Path
    size_bytes: int

    @property
    def gzipped(self) -> bool:
        """Compressed with gzip."""
        return self.name.endswith(".gz")

    @property
    def jsonl(self) -> bool:
        """One JSON record a line, each a document of its own."""
        return self.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def list_files(config: DataConfig, base_dir: Path) -> list[SourceFile]:
    """All input files: paths in the order given, names sorted within each, none twice.

    Raises:
        DataError: no paths, a path that is not there, one without a fitting file, or a file
            that is not JSONL where `format` takes records.
    """
    if not config.paths:
        raise DataError(
            "data.paths is empty: there is nothing to train on",
            code="data-no-paths",
            hint=f"data.paths: my-texts/ (files, folders, globs), or {STDLIB} to try raylm",
        )
    found: dict[Path, SourceFile] = {}
    labels: dict[str, Path] = {}
    for entry in config.paths:
        root, label, relative_paths = _expand(entry, config, base_dir)
        label = _unique(label, root, labels)
        for relative in relative_paths:
            path = root / relative
            name = f"{label}/{relative}" if label else relative
            found.setdefault(path.resolve(), SourceFile(_text(name), path, path.stat().st_size))
    files = list(found.values())
    other = None if config.format == "text" else next((f for f in files if not f.jsonl), None)
    if other is not None:
        raise DataError(
            f"{other.name}: data.format={config.format} reads records, from .jsonl and .ndjson "
            "files (or .gz of them) alone",
            code="data-not-records",
            hint='data.pattern: "**/*.jsonl" takes the fitting files of a folder, data.exclude '
            "leaves others out",
        )
    return files


def _expand(entry: str, config: DataConfig, base_dir: Path) -> tuple[Path, str, list[str]]:
    """The folder that an entry starts from, the label of that folder, the files below it."""
    if entry.startswith("python:"):
        return _stdlib(entry, config)
    given = Path(entry).expanduser()
    path = base_dir / given
    if path.is_dir():
        files = list(_walk(path, config.pattern, config.exclude))
        if not files:
            raise DataError(
                f"{entry}: no file in this folder fits data.pattern={config.pattern!r}",
                code="data-no-files",
                hint='hidden files and what data.exclude names do not count; "**/*" takes all',
            )
        return path, _label(given), sorted(files)
    if path.is_file():
        return path.parent, _label(given.parent, path.parent), [path.name]
    if glob.has_magic(entry):
        return _glob(given, base_dir, config)
    raise _missing(entry, path)


def _glob(given: Path, base_dir: Path, config: DataConfig) -> tuple[Path, str, list[str]]:
    fixed = [*given.parts[: next(i for i, p in enumerate(given.parts) if glob.has_magic(p))]]
    head = Path(*fixed)
    root = base_dir / head
    if not root.is_dir():
        raise _missing(str(given), root)
    pattern = Path(*given.parts[len(fixed) :]).as_posix()
    files = sorted(_walk(root, pattern, config.exclude))
    if not files:
        raise DataError(
            f"{given}: no file fits this glob",
            code="data-no-files",
            hint=f"it is searched for in {root}; ** spans folders, hidden files do not count",
        )
    return root, _label(head, root), files


def _stdlib(entry: str, config: DataConfig) -> tuple[Path, str, list[str]]:
    if entry != STDLIB:
        raise DataError(
            f"{entry}: {STDLIB} is the only corpus of this kind",
            code="data-missing-path",
            hint=f"did you mean {STDLIB!r}?",
        )
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(_walk(root, "**/*.py", (*_STDLIB_EXCLUDE, *config.exclude)))
    if not files:
        raise DataError(
            f"{entry}: {root} holds no Python source",
            code="data-no-files",
            hint="give a folder of text in data.paths instead",
        )
    return root, STDLIB, files


def _walk(root: Path, pattern: str, exclude: tuple[str, ...]) -> Iterator[str]:
    """Relative paths of plain files; links to folders are followed, each folder once."""
    wanted, seen = compile_glob(pattern), set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        base = Path(folder).relative_to(root)
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and not matches((base / name).as_posix(), exclude)
        )
        for name in files:
            relative = (base / name).as_posix()
            if name[0] == "." or not wanted.fullmatch(relative) or matches(relative, exclude):
                continue
            if os.path.isfile(os.path.join(folder, name)):
                yield relative


def _label(given: Path, root: Path | None = None) -> str:
    if given.is_absolute():
        return (root or given).name
    label = Path(os.path.normpath(given)).as_posix()
    return "" if label == "." else label


def _unique(label: str, root: Path, labels: dict[str, Path]) -> str:
    """Two folders of the same name are told apart by their place in `paths`."""
    candidate, number = label, 1
    while labels.setdefault(candidate, root.resolve()) != root.resolve():
        number += 1
        candidate = f"{label}~{number}"
    return candidate


def _missing(entry: str, path: Path) -> DataError:
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, there)
    if not path.parent.is_dir():
        hint = f"its folder {path.parent} is not there either"
    else:
        hint = f"did you mean {close!r}?" if close else f"{path.parent} has no {path.name!r}"
    return DataError(
        f"{entry}: there is no such file or folder ({path})", code="data-missing-path", hint=hint
    )


def _text(name: str) -> str:
    """File names are bytes; what is not UTF-8 in them is replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
