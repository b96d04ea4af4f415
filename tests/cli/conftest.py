import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raylm.artifact import Artifact
from raylm.cli import main
from raylm.store import Store
from tests.bench.server import serve  # noqa: F401


class Result:
    """What one command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that commands find by themselves, and an empty working folder."""
    monkeypatch.setenv("RAYLM_STORE", str(tmp_path / "store"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Store(tmp_path / "store")


@pytest.fixture
def raylm(store: Store, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*args: str) -> Result:
        code = main(list(args))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def models(store: Store) -> tuple[Artifact, Artifact]:
    """A model and its compressed child."""
    with store.draft("model", "tiny") as draft:
        (draft.path / "weights").write_bytes(b"w" * 3000)
        parent = draft.commit(metrics={"perplexity": 12.5})
    with store.draft("model", "tiny-int8") as draft:
        (draft.path / "weights").write_bytes(b"w" * 800)
        child = draft.commit(parents=(parent,), config={"method": "int8"})
    return parent, child
