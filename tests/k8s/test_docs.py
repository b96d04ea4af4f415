"""What docs/kubernetes.md tells to type is there."""

import json
import re
from pathlib import Path

from k8s.local.__main__ import _parser
from k8s.local.layout import KUBECONFIG
from k8s.local.requirements import PACKAGES
from tests.e2e.table import MARKS, tables

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```sh\n(.*?)^```", _PAGE, re.DOTALL | re.MULTILINE)
_LINES = [line for block in _BLOCKS for line in block.replace("\\\n", "").splitlines()]


def test_commands_of_the_cluster_are_known() -> None:
    commands = [line.split()[3:] for line in _LINES if line.startswith("python -m k8s.local ")]
    assert [words[0] for words in commands] == ["status", "kubectl", "import"]
    for words in commands:
        if words[0] != "kubectl":  # its words are its own
            assert _parser().parse_args(words).command == words[0]


def test_targets_are_in_the_makefile() -> None:
    targets = [line.split()[1] for line in _LINES if line.startswith("make ")]
    assert targets == ["cluster-up", "cluster-down", "e2e", "e2e"]
    makefile = (_ROOT / "Makefile").read_text()
    assert "\ne2e: .venv/dev ##" in makefile and "-m tests.e2e\n" in makefile
    names = {word.partition("=")[0] for line in _LINES for word in line.split() if "=" in word}
    assert {"CONTEXT", "IMAGE", "REDIS_IMAGE", "STORAGE_CLASS"} <= names
    for target in targets[:2]:
        action = target.removeprefix("cluster-")
        assert f"\n{target}: ##" in makefile
        assert f"-m k8s.local {action}\n" in makefile


def test_the_packages_are_all_that_are_asked_for() -> None:
    (line,) = [line for line in _LINES if line.startswith("apt-get install")]
    assert [word for word in line.split()[2:] if not word.startswith("-")] == PACKAGES


def test_files_and_folders_are_where_the_page_says() -> None:
    assert f"export KUBECONFIG={KUBECONFIG}" in _LINES
    folders = set(re.findall(r"`(k8s/[\w/]+)`", _PAGE))
    assert len(folders) >= 5
    assert [folder for folder in folders if not (_ROOT / folder).is_dir()] == []


def test_the_tables_are_of_the_figures_that_are_kept() -> None:
    begin, end = MARKS
    shown = _PAGE.split(begin)[1].split(end)[0]
    assert shown.strip() == tables(json.loads((_ROOT / "docs/e2e.json").read_text()))
