"""What is generated of the charts is up to date, and says all there is to say."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raylm.deploy.kubernetes.environment import FOLDER, pod_env
from raylm.deploy.kubernetes.generate import files, schema, values_yaml
from raylm.deploy.kubernetes.values import CHARTS, Chart

HELM = Path(__file__).parents[3] / "helm"


@pytest.mark.parametrize("name", sorted(files()))
def test_files_are_those_of_the_generator(name: str) -> None:
    assert (HELM / name).read_text() == files()[name], "make generate"


@pytest.mark.parametrize("chart", CHARTS)
def test_defaults_fit_their_own_schema(chart: Chart) -> None:
    values = yaml.safe_load(values_yaml(chart))
    jsonschema.Draft202012Validator(schema(chart)).validate(values)


@pytest.mark.parametrize("chart", CHARTS)
def test_every_value_is_described_and_every_object_is_closed(chart: Chart) -> None:
    found = schema(chart)
    objects = [found, *found["$defs"].values()]
    assert len(objects) > 15
    missing = []
    for item in objects:
        if "properties" not in item:
            continue
        assert item["additionalProperties"] is False, item["title"]
        for name, value in item["properties"].items():
            if not value.get("description") and "const" not in value:
                missing.append(f"{item['title']}.{name}")
    # Of raylm.yaml's own sections, where the name alone says it.
    own = [name for name in missing if not _is_of_the_run(name)]
    assert own == []


def _is_of_the_run(name: str) -> bool:
    from raylm.config import deploy, pods

    title = name.partition(".")[0]
    return not (hasattr(deploy, title) or hasattr(pods, title))


@pytest.mark.parametrize("chart", CHARTS)
def test_the_readme_lists_every_value(chart: Chart) -> None:
    table = (HELM / chart / "README.md").read_text().split("## Values")[1]
    listed = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert listed == set(_leaves(yaml.safe_load(values_yaml(chart)), "", schema(chart)))


def _leaves(values: dict[str, Any], prefix: str, found: dict[str, Any]) -> list[str]:
    """Dotted names; free-form mappings and lists are one value."""
    names: list[str] = []
    for name, value in values.items():
        inner = found["properties"][name]
        ref = inner.get("$ref", "").rpartition("/")[2]
        if ref and isinstance(value, dict):
            section = {**schema_of(found, ref), "$defs": found["$defs"]}
            names += _leaves(value, f"{prefix}{name}.", section)
        else:
            names.append(f"{prefix}{name}")
    return names


def schema_of(found: dict[str, Any], ref: str) -> dict[str, Any]:
    return dict(found["$defs"][ref])


def test_pods_have_haproxy_where_the_script_is_written() -> None:
    env = pod_env("serve")
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert Path(env["RAY_SERVE_HAPROXY_BINARY_PATH"]).parent == FOLDER
    # HAProxy allows its sockets 97 bytes, and Ray puts a node's id of 56 in them.
    socket = Path(env["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    assert len(str(socket.parent / ("f" * 56) / socket.name)) <= 97
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in pod_env("train")


@pytest.mark.parametrize("kind", ["serve", "train"])
def test_no_token_is_in_the_environment_that_is_generated(kind: Any) -> None:
    names = {name.upper() for name in pod_env(kind)}
    assert not {n for n in names if "TOKEN" in n or "PASSWORD" in n or "SECRET" in n}
    assert pod_env(kind)["RAY_USAGE_STATS_ENABLED"] == "0"


def test_schemas_are_json() -> None:
    for chart in CHARTS:
        text = (HELM / chart / "values.schema.json").read_text()
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
