"""What is generated is up to date: `make generate` would change nothing."""

import json
from pathlib import Path

import pytest

from raylm.cli.reference import reference
from raylm.config.run import RunConfig
from raylm.serve import openapi, parameters

ROOT = Path(__file__).parent.parent


def test_the_command_reference_is_that_of_the_commands() -> None:
    assert (ROOT / "docs/cli.md").read_text() == reference(), "make generate"


def test_the_schema_is_that_of_the_config() -> None:
    schema = json.loads((ROOT / "docs/config.schema.json").read_text())
    assert schema["properties"].keys() == RunConfig.model_fields.keys(), "make generate"
    assert schema["additionalProperties"] is False


def test_the_document_of_the_api_is_that_of_the_gateway() -> None:
    assert (ROOT / "docs/openapi.json").read_text() == openapi.text(), "make generate"


def test_the_table_of_parameters_is_that_of_the_bodies() -> None:
    page = (ROOT / "docs/serving.md").read_text()
    shown = page.split(parameters.BEGIN)[1].split(parameters.END)[0]
    assert shown.strip() == parameters.table(), "make generate"


@pytest.mark.parametrize("lock", ["run.txt", "dev.txt"])
def test_locks_pin_everything_and_name_no_host(lock: str) -> None:
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pins) > 50
    assert all("==" in line for line in pins)
    assert not any("://" in line for line in lines)
